/*-------------------------------------------------------------------------
 *
 * ship.c
 *	  Plans for statements that the source has to do all of.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "optimizer/plancat.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

static get_relation_info_hook_type previous_relation_info_hook = NULL;

/*
 * Does the source do all the work of a plan?  A filter or an aggregate above
 * the foreign scan would fetch every row.
 */
static bool
is_shipped(SPIPlanPtr plan)
{
	CachedPlan *cached = SPI_plan_get_cached_plan(plan);
	bool		shipped = false;

	if (cached == NULL)
		return false;
	if (list_length(cached->stmt_list) == 1)
	{
		Plan	   *top = linitial_node(PlannedStmt, cached->stmt_list)->planTree;

		shipped = IsA(top, ForeignScan) && top->qual == NIL;
	}
	ReleaseCachedPlan(cached, NULL);	/* the plan is not a saved one */
	return shipped;
}

/*
 * Planner hook: make every foreign table look huge.  postgres_fdw decides by
 * cost whether the source aggregates, sorts and stops at a LIMIT; it would
 * rather do so here where it takes the table for small, which it does with
 * every table that was never analyzed.
 */
static void
pretend_huge(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	if (previous_relation_info_hook)
		previous_relation_info_hook(root, relid, inhparent, rel);
	if (rel->fdwroutine != NULL)
		rel->tuples = 1e18;		/* more than any table has, and products of it stay finite */
}

/* Install the planner hook in this process, which plans nothing but a run. */
void
tsync_prepare_planner(void)
{
	previous_relation_info_hook = get_relation_info_hook;
	get_relation_info_hook = pretend_huge;
}

/*
 * Prepare a statement for the source.  With all other costs set to zero, what
 * is left to compare is the number of rows that cross the network.
 */
SPIPlanPtr
tsync_prepare_for_source(const char *sql)
{
	static const char *const free_of_charge[] = {
		"seq_page_cost", "cpu_tuple_cost", "cpu_operator_cost"
	};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext planning = AllocSetContextCreate(caller, "tablesync planning", ALLOCSET_DEFAULT_SIZES);
	int			nestlevel = NewGUCNestLevel();
	SPIPlanPtr	plan;
	bool		shipped;

	/* goes with pretend_huge(): one without the other does not ship every statement */
	for (int i = 0; i < lengthof(free_of_charge); i++)
		(void) set_config_option(free_of_charge[i], "0", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	MemoryContextSwitchTo(planning);	/* the planner leaves much behind, which would pile up until the commit */
	shipped = is_shipped(plan);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(planning);
	AtEOXact_GUC(true, nestlevel);

	/* refused, not tried: it would fetch the whole table in order to work here */
	if (!shipped)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("postgres_fdw would not ship a statement to the source"),
				 errdetail_log("Statement: %s", sql),
				 errhint("The foreign table's option use_remote_estimate must be false, and fdw_tuple_cost not zero.")));
	return plan;
}

/* Raise an error unless a query for the source ships. */
void
tsync_check_ships(const char *sql)
{
	SPI_freeplan(tsync_prepare_for_source(sql));
}
