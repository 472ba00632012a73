# tidy.awk: the laws for C files (.c, .h, .inc); run by tidy.sh over all of them in one pass.
# It reads C line by line, with comments and literals removed, in the style clang-format writes:
# a definition starts in the first column and ends with "}" in the first column.

BEGIN {
    libc = " assert complex ctype errno fenv float inttypes limits locale math setjmp signal" \
        " stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib string time uchar wchar" \
        " wctype "
    kernel_system = " math.h string.h stdint.h stdbool.h stddef.h float.h immintrin.h cpuid.h" \
        " arm_neon.h arm_sve.h sys/auxv.h "
    word = "(^|[^A-Za-z0-9_.>])"
    never = "(exit|_exit|_Exit|abort|assert|printf|fprintf|vprintf|vfprintf|puts|fputs|putchar" \
        "|perror|system|signal|sigaction|setlocale|strtok|qsort)" # qsort allocates: dsi_sort
    # These read the decimal point of the locale; json.c gives strtod whole digits and an exponent.
    locale_bound = "(strtod|strtof|strtold|atof|atoi)"
    fallible = "(malloc|calloc|realloc|free|strdup|strndup|aligned_alloc|posix_memalign|open" \
        "|openat|fopen|fread|read|pread|write|pwrite|fsync|close|rename|unlink|fclose|stat|fstat" \
        "|mmap|munmap|madvise|eventfd|pthread_create|pthread_mutex_init|pthread_cond_init)"
    in_kernel = "(malloc|calloc|realloc|free|alloca|aligned_alloc|_mm_malloc|mmap|pthread_[a-z_]+" \
        "|thrd_[a-z_]+|getenv)"
}

function report(line, text) { printf "%s:%d: %s\n", file, line, text }

# The line without comments and with empty literals. in_comment lives across lines.
function strip(line,    out, at, token) {
    out = ""
    while (line != "") {
        if (in_comment) {
            at = index(line, "*/")
            if (!at) return out
            line = substr(line, at + 2)
            in_comment = 0
        } else if (match(line, /\/\*|\/\/|"|'/)) {
            token = substr(line, RSTART, RLENGTH)
            out = out substr(line, 1, RSTART - 1)
            line = substr(line, RSTART + RLENGTH)
            if (token == "//") return out
            if (token == "/*") { in_comment = 1; continue }
            if (token == "\"") at = match(line, /^([^"\\]|\\.)*"/)
            else at = match(line, /^([^'\\]|\\.)*'/)
            if (!at) return out
            line = substr(line, RLENGTH + 1)
            out = out token token
        } else return out line
    }
    return out
}

# "lib/model" + "../base/base.h" -> "lib/base/base.h"
function resolve(folder, path) {
    while (path ~ /^\.\.?\//) {
        if (path ~ /^\.\.\//) { if (!sub(/\/[^\/]*$/, "", folder)) folder = "" }
        sub(/^\.\.?\//, "", path)
    }
    return folder == "" ? path : folder "/" path
}

# ---- Who may include whom ---------------------------------------------------------------------
function system_ok(name,    base) {
    base = name
    sub(/\.h$/, "", base)
    if (area == "include") return name ~ /^deepseek\// || index(libc, " " base " ")
    if (area == "kernels") return name == "deepseek/types.h" || index(kernel_system, " " name " ")
    if (name !~ /^deepseek\//) return 1
    if (area == "lib/base") return name ~ /^deepseek\/(types|dsinfer)\.h$/
    if (area == "lib/backend") return name ~ /^deepseek\/(types|backend)\.h$/
    return 1
}
function project_ok(target) {
    if (area == "include" || area == "examples") return 0
    if (area == "kernels") return target ~ /^kernels\//
    if (area == "lib/base") return target ~ /^lib\/base\//
    if (area == "lib/model" || area == "lib/text")
        return target ~ /^lib\/base\// || index(target, area "/") == 1
    if (area == "lib/backend") {
        if (target ~ /^kernels\/(kernels|formats|blocks\/blocks)\.h$/)
            return file ~ /^lib\/backend\/cpu[^\/]*$/
        return target ~ /^lib\/(base|backend)\//
    }
    if (area == "lib") return target ~ /^lib\//
    if (file ~ /^bench\// && target ~ /^(kernels\/formats\.h|lib\/internal\.h)$/) return 1
    if (file ~ /^bench\// && target ~ /^lib\/backend\/(gemm|cpu_selftest)\.h$/) return 1
    if (area == "tools") return target ~ /^(tools|bench|lib\/(base|model|text))\// ||
        target == "kernels/kernels.h" || target == "kernels/formats.h" || \
        target == "lib/backend/cpu_selftest.h" || \
        target == "lib/backend/cpu_isa.h" || target == "lib/backend/cpu_path.h"
    return 1
}
function check_include(line,    name, target) {
    if (match(line, /<[^>]*>/)) {
        name = substr(line, RSTART + 1, RLENGTH - 2)
        if (!system_ok(name)) report(FNR, "include: " area " may not include <" name ">")
    } else if (match(line, /"[^"]*"/)) {
        name = substr(line, RSTART + 1, RLENGTH - 2)
        target = resolve(folder, name)
        if (!project_ok(target)) report(FNR, "include: " area " may not include " target)
    }
}

# ---- Calls ------------------------------------------------------------------------------------
function check_call(code, names, text,    rest, name) {
    rest = code
    while (match(rest, word names "[ \t]*\\(")) {
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        gsub(/[^A-Za-z0-9_]/, "", name)
        report(FNR, "call: " name "() " text)
    }
}
# The system is asked in one place, so that a test can make any one call fail.
function count_fallible(code,    rest, name) {
    rest = code
    while (match(rest, word fallible "[ \t]*\\(")) {
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        gsub(/[^A-Za-z0-9_]/, "", name)
        if (name in asked) report(FNR, "call: " name "() stands in " asked[name] " already")
        else asked[name] = file ":" FNR
    }
}
function check_calls(code) {
    if (area ~ /^lib/) {
        check_call(code, never, "is banned in lib/")
        if (file != "lib/base/json.c") check_call(code, locale_bound, "is banned in lib/")
        if (code ~ /(^|[^A-Za-z0-9_])(stdout|stderr)([^A-Za-z0-9_]|$)/)
            report(FNR, "call: lib/ prints nothing (stdout, stderr)")
        if (file != "lib/engine.c")
            check_call(code, "(getenv|secure_getenv)", "belongs in lib/engine.c alone")
        if (file ~ /^lib\/base\/sys_[a-z]+\.c$/) count_fallible(code)
        else check_call(code, fallible, "goes through lib/base/sys.h")
    } else if (area == "kernels") {
        check_call(code, in_kernel, "is banned in kernels/")
        if (code ~ /_Thread_local|__thread|_Atomic|(^|[^A-Za-z0-9_])volatile /)
            report(FNR, "kernel: no shared or thread-local state")
        if (depth > 0 && code ~ /(^|[^A-Za-z0-9_])static / && code !~ /(const|\()/)
            report(FNR, "kernel: a mutable static variable")
    }
}

# ---- Functions, macros, globals -----------------------------------------------------------------
function check_length(kind, from, to) {
    if (to - from + 1 > limit)
        report(from, kind ": " to - from + 1 " lines, the limit is " limit)
}
function is_mutable_global(text) {
    return area == "kernels" && text !~ /const/ && text !~ /\(/ &&
        text !~ /^(typedef|struct|enum|union|extern|_Static_assert)/
}
function count(text, c) { return gsub(c, c, text) }

# One line of code at or below the first column of a definition.
function follow(code) {
    if (depth == 0) {
        if (code ~ /^[ \t]*$/ || code ~ /^extern "" *\{/) { declaration = ""; return }
        if (code ~ /^\}/) { declaration = ""; return }
        if (declaration == "") start = FNR
        declaration = declaration code " "
        is_function = declaration ~ /\)[^=;]*\{/ && declaration !~ /^[^({]*=/
        if (code ~ /\{/ && declaration ~ /=/ && !is_function && is_mutable_global(declaration))
            report(start, "kernel: a mutable global variable")
        if (code !~ /\{/ && code ~ /;[ \t]*$/ && is_mutable_global(declaration))
            report(start, "kernel: a mutable global variable")
    }
    depth += count(code, "{") - count(code, "}")
    if (depth > 0 && code ~ /^\}/) depth = 0 # unbalanced by #if: the column decides
    if (depth <= 0) {
        depth = 0
        if (is_function && code ~ /\}/) check_length("function", start, FNR)
        if (code ~ /[;}][ \t]*$/) { declaration = ""; is_function = 0 }
    }
}

FNR == 1 {
    file = FILENAME
    sub(/^\.\//, "", file)
    folder = file
    if (!sub(/\/[^\/]*$/, "", folder)) folder = ""
    area = folder
    if (area ~ /^(include|kernels|tools|examples|tests|bench)(\/|$)/) sub(/\/.*/, "", area)
    if (area == "bench") area = "tools"
    limit = area == "kernels" ? 120 : 70
    depth = in_comment = macro_start = is_function = 0
    declaration = ""
}
{
    if (!in_comment && /^[ \t]*#[ \t]*include/) { check_include($0); next }
    code = strip($0)
    if (macro_start || code ~ /^[ \t]*#/) {
        if (!macro_start) macro_start = FNR
        check_calls(code)
        if ($0 !~ /\\$/) { check_length("macro", macro_start, FNR); macro_start = 0 }
        next
    }
    check_calls(code)
    follow(code)
}
