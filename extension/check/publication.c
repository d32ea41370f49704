/*-------------------------------------------------------------------------
 *
 * publication.c
 *	  A run that has failed because of a publication: what mends it.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "check/check.h"
#include "execute/execute.h"
#include "utils/memutils.h"

/* A question about what keeps a replica from being changed. */
typedef struct Question
{
	Oid			relid;
	MemoryContext context;
	char	   *remedy;			/* NULL: nothing does */
} Question;

static void
ask(void *arg)
{
	Question   *question = arg;
	char	   *remedy;

	tsync_begin();
	tsync_catalog_execute_oid("SELECT remedy FROM tablesync.publication_problem($1::regclass)", question->relid);
	remedy = tsync_result_text(0, 1);
	question->remedy = remedy ? MemoryContextStrdup(question->context, remedy) : NULL;
	tsync_commit();
}

/* Whatever goes wrong, the error that the run has failed by is the one that counts. */
static bool
does_not_matter(ErrorData *edata, void *arg)
{
	return true;
}

/*
 * Add to the error that has ended a run what mends it, if a publication is its
 * reason: PostgreSQL says what is wrong, and little of what to do.  Not in a transaction.
 */
void
tsync_name_publication(ErrorData *edata, Oid relid)
{
	Question	question = {.relid = relid,.context = CurrentMemoryContext};

	/* its messages are translated, and its error codes those of many others */
	if (edata->funcname == NULL || strcmp(edata->funcname, "CheckCmdReplicaIdentity") != 0)
		return;
	(void) tsync_try(ask, &question, does_not_matter, NULL);
	if (question.remedy != NULL)
		edata->hint = question.remedy;
}
