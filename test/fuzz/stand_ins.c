/*-------------------------------------------------------------------------
 *
 * stand_ins.c
 *	  The little of the server that bucket.c needs, for the fuzzer.
 *
 * Memory is malloc's, so that AddressSanitizer sees each allocation by itself;
 * an error jumps back to the fuzzer.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "utils/memutils.h"

/* Everything allocated for one input. */
#define MAX_ALLOCATIONS 1024

MemoryContext CurrentMemoryContext = NULL;
sigjmp_buf	fuzz_error;
static void *allocations[MAX_ALLOCATIONS];
static int	nallocations = 0;

static void *
note(void *pointer)
{
	if (pointer == NULL || nallocations == MAX_ALLOCATIONS)
		abort();
	return allocations[nallocations++] = pointer;
}

/* Free what an input has left. */
void
fuzz_free_all(void)
{
	while (nallocations > 0)
		free(allocations[--nallocations]);
}

void *
palloc(Size size)
{
	if (!AllocSizeIsValid(size))
		siglongjmp(fuzz_error, 1);	/* as the server would refuse it */
	return note(malloc(size));
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
palloc_extended(Size size, int flags)
{
	return note(flags & MCXT_ALLOC_ZERO ? calloc(1, size) : malloc(size));
}

void *
MemoryContextAllocExtended(MemoryContext context, Size size, int flags)
{
	return palloc_extended(size, flags);
}

void
pfree(void *pointer)
{
	for (int i = 0; i < nallocations; i++)
		if (allocations[i] == pointer)
		{
			allocations[i] = allocations[--nallocations];
			free(pointer);
			return;
		}
	abort();					/* not ours, or freed twice */
}

void *
repalloc_huge(void *pointer, Size size)
{
	for (int i = 0; i < nallocations; i++)
		if (allocations[i] == pointer)
			return allocations[i] = realloc(pointer, size);
	abort();
}

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	siglongjmp(fuzz_error, 1);
}

void
ExceptionalCondition(const char *conditionName, const char *errorType, const char *fileName, int lineNumber)
{
	abort();
}
