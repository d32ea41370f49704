/*
 * cppcheck.h: macros of PostgreSQL whose form cppcheck must know to read our
 * code.  With the server's own headers it takes minutes, and takes macros for
 * mistakes of ours.
 */
#define foreach(cell, list) for (ListCell *state = 0; (cell = next_cell(list, &state));)
#define for_each_from(cell, list, n) for (ListCell *state = n; (cell = next_cell(list, &state));)
#define for_each_cell(cell, list, first) for (ListCell *state = first; (cell = next_cell(list, &state));)
#define forboth(a, list_a, b, list_b) for (ListCell *state = 0; next_cells(&a, list_a, &b, list_b, &state);)
#define PG_TRY() if (setjmp(0) == 0) {
#define PG_CATCH() } else {
#define PG_FINALLY() } {
#define PG_END_TRY() }
#define PG_ENSURE_ERROR_CLEANUP(function, argument) function(0, argument); {
#define PG_END_ENSURE_ERROR_CLEANUP(function, argument) }
#define PG_FUNCTION_INFO_V1(function) extern int info_of_##function
#define CppAsString2(x) #x
#define INT64_FORMAT "%ld"
#define UINT64_FORMAT "%lu"
