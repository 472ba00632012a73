/* digest.h: SHA-256 and SM3 of files, by OpenSSL's libcrypto, which is looked for when it is
 * needed: the command runs without it, only manifests do not. */
#ifndef DSINFER_TOOL_DIGEST_H
#define DSINFER_TOOL_DIGEST_H

#include <stdint.h>

enum { DIGEST_SHA256 = 0, DIGEST_SM3 = 1, DIGEST_HEX_CHARS = 64, DIGEST_NOT_REGULAR = -1 };

typedef struct digest_job {
    char *path;                     /* a regular file */
    uint64_t n_bytes;               /* its size, for the progress */
    int code;                       /* out: 0, the errno of open or read, DIGEST_NOT_REGULAR */
    char hex[DIGEST_HEX_CHARS + 1]; /* out: lower case; "" if code is not 0 */
} digest_job;

/* "SHA256", "SM3": the names in tagged manifest lines. */
const char *digest_name(uint32_t kind);

/* Fills code and hex of n_jobs jobs on n_threads threads (0: one per CPU), each file on one thread,
 * with progress in bytes. CLI_OK also if some files could not be read; else an exit code, after
 * explaining: no libcrypto on this machine, one without this digest, no memory. */
int digest_files(digest_job *jobs, uint32_t n_jobs, uint32_t kind, uint32_t n_threads);

#endif
