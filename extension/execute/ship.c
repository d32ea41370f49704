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
#include "foreign/fdwapi.h"
#include "nodes/plannodes.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/plancat.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

static get_relation_info_hook_type previous_relation_info_hook = NULL;

/* What a foreign table's wrapper does, and how it adds to the planner's choices itself; join and upper relations share it. */
typedef struct Routine
{
	FdwRoutine	routine;
	GetForeignUpperPaths_function add_upper_paths;
	GetForeignJoinPaths_function add_join_paths;
} Routine;

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

/* Those paths of a list by which the source does all the work. */
static List *
foreign_paths(List *paths)
{
	List	   *foreign = NIL;
	ListCell   *lc;

	foreach(lc, paths)
		if (IsA(lfirst(lc), ForeignPath))
			foreign = lappend(foreign, lfirst(lc));
	return foreign;
}

/*
 * Let the source do what it can.  "Others" were the choices before postgres_fdw
 * was asked for its own, which therefore were not compared with them by cost.
 */
static void
prefer_foreign(RelOptInfo *rel, List *others)
{
	List	   *foreign = list_concat(foreign_paths(others), foreign_paths(rel->pathlist));

	rel->pathlist = foreign != NIL ? foreign : others;
}

static void
add_foreign_upper_paths(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input, RelOptInfo *output, void *extra)
{
	List	   *others = output->pathlist;

	output->pathlist = NIL;
	((Routine *) output->fdwroutine)->add_upper_paths(root, stage, input, output, extra);
	prefer_foreign(output, others);
	/* of a plain scan postgres_fdw has added those that are sorted before */
	if (stage == UPPERREL_ORDERED && foreign_paths(output->pathlist) == NIL)
	{
		List	   *sorted = NIL;
		ListCell   *lc;

		foreach(lc, foreign_paths(input->pathlist))
			if (pathkeys_contained_in(root->sort_pathkeys, ((Path *) lfirst(lc))->pathkeys))
				sorted = lappend(sorted, apply_projection_to_path(root, output, lfirst(lc), root->upper_targets[UPPERREL_ORDERED]));
		prefer_foreign(output, list_concat(sorted, output->pathlist));
	}
}

static void
add_foreign_join_paths(PlannerInfo *root, RelOptInfo *join, RelOptInfo *outer, RelOptInfo *inner, JoinType type,
					   JoinPathExtraData *extra)
{
	List	   *others = join->pathlist;

	join->pathlist = NIL;
	((Routine *) join->fdwroutine)->add_join_paths(root, join, outer, inner, type, extra);
	prefer_foreign(join, others);
}

/*
 * Planner hook: what the source can do it does.  postgres_fdw offers that to the
 * planner, which would decide by cost, and that by statistics which the foreign
 * table has or lacks.
 */
static void
leave_no_choice(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	Routine    *routine;

	if (previous_relation_info_hook)
		previous_relation_info_hook(root, relid, inhparent, rel);
	if (rel->fdwroutine == NULL)
		return;
	/* other wrappers may be in what triggers of the owner do */
	routine = palloc(sizeof(Routine));
	routine->routine = *rel->fdwroutine;
	routine->add_upper_paths = rel->fdwroutine->GetForeignUpperPaths;
	routine->add_join_paths = rel->fdwroutine->GetForeignJoinPaths;
	if (routine->add_upper_paths != NULL)
		routine->routine.GetForeignUpperPaths = add_foreign_upper_paths;
	if (routine->add_join_paths != NULL)
		routine->routine.GetForeignJoinPaths = add_foreign_join_paths;
	rel->fdwroutine = &routine->routine;
}

/* Install the planner hook in this process, which plans nothing but a run. */
void
tsync_prepare_planner(void)
{
	previous_relation_info_hook = get_relation_info_hook;
	get_relation_info_hook = leave_no_choice;
}

/* Prepare a statement for the source. */
SPIPlanPtr
tsync_prepare_for_source(const char *sql)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext planning = AllocSetContextCreate(caller, "tablesync planning", ALLOCSET_DEFAULT_SIZES);
	SPIPlanPtr	plan;
	bool		shipped;

	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	MemoryContextSwitchTo(planning);	/* the planner leaves much behind, which would pile up until the commit */
	shipped = is_shipped(plan);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(planning);

	/* refused, not tried: it would fetch the whole table in order to work here */
	if (!shipped)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("postgres_fdw would not ship a statement to the source"),
				 errdetail_log("Statement: %s", sql),
				 errhint("Types and functions of an extension ship only if the foreign server's option extensions names it.")));
	return plan;
}

/* Raise an error unless a query for the source ships. */
void
tsync_check_ships(const char *sql)
{
	SPI_freeplan(tsync_prepare_for_source(sql));
}
