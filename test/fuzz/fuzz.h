/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What the fuzzer and its stand-ins for the server share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_FUZZ_H
#define TABLESYNC_FUZZ_H

#include "postgres.h"

#include <setjmp.h>

extern sigjmp_buf fuzz_error;	/* where ereport(ERROR) goes */
extern void fuzz_free_all(void);

#endif							/* TABLESYNC_FUZZ_H */
