/* two_folders.h: two temporary folders for the tests of a program, made and removed by the group's
 * setup and teardown. */
#ifndef DSI_TESTS_TWO_FOLDERS_H
#define DSI_TESTS_TWO_FOLDERS_H

#include "model_files.h"

static char folder[64], other[64];
static int make_folders(void **state) {
    (void)state;
    temp_folder(folder);
    temp_folder(other);
    return 0;
}
static int drop_folders(void **state) {
    (void)state;
    remove_folder(folder);
    remove_folder(other);
    return 0;
}

#endif
