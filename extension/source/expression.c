/*-------------------------------------------------------------------------
 *
 * expression.c
 *	  Expressions over the columns of a source: filters and computed columns.
 *
 * A user writes them, and each statement for the source has them.  So what is
 * kept is only what the parser has taken for one expression of built-in immutable
 * operators and functions over columns of the foreign table, in the words of
 * the server itself (ruleutils), which mean the same whatever a session has set.
 * The source computes them: that they ship is for the plan to show.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/relation.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "process/process.h"
#include "query/query.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

TSYNC_FUNCTION_INFO_V1(tsync_columns_of_expression);
TSYNC_FUNCTION_INFO_V1(tsync_rename_in_expression);
TSYNC_FUNCTION_INFO_V1(tsync_check_expression);
TSYNC_FUNCTION_INFO_V1(tsync_keep_runs_away);

#define MAX_EXPRESSION_BYTES 10000

/* An expression, and what errors say of it. */
typedef struct Subject
{
	const char *setting;		/* filter, or expressions */
	const char *text;
	List	   *columns;		/* references to columns in it, ColumnRef */
} Subject;

/* Error context: a position is one in the expression, not in the statement that has it. */
static void
show_expression(void *arg)
{
	Subject    *subject = arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(subject->text);
	}
	errcontext("expression in setting \"%s\"", subject->setting);
}

static void
refuse(Subject *subject, int code, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(code),
			 errmsg("invalid value for %s: %s", subject->setting, problem),
			 hint ? errhint("%s", hint) : 0));
}

/* Refuse what can't be analyzed, and collect the columns. */
static bool
look_at_raw(Node *node, void *arg)
{
	Subject    *subject = arg;

	if (node == NULL)
		return false;
	check_stack_depth();
	if (IsA(node, SubLink))
		refuse(subject, ERRCODE_FEATURE_NOT_SUPPORTED, "it has a subquery", "An expression is over the columns of one row.");
	if (IsA(node, ParamRef))
		refuse(subject, ERRCODE_UNDEFINED_PARAMETER, "it has a parameter", "Write the value instead.");
	if (IsA(node, ColumnRef))
	{
		ColumnRef  *ref = (ColumnRef *) node;

		if (list_length(ref->fields) != 1 || !IsA(linitial(ref->fields), String))
			refuse(subject, ERRCODE_SYNTAX_ERROR, "columns have to be named one by one, without a table", NULL);
		subject->columns = lappend(subject->columns, ref);
		return false;
	}
	return raw_expression_tree_walker(node, look_at_raw, arg);
}

/* Is there anything else in a statement than one expression? */
static bool
is_only_expression(SelectStmt *select)
{
	return select->op == SETOP_NONE && list_length(select->targetList) == 1 && select->distinctClause == NIL &&
		select->intoClause == NULL && select->fromClause == NIL && select->whereClause == NULL &&
		select->groupClause == NIL && select->havingClause == NULL && select->windowClause == NIL &&
		select->valuesLists == NIL && select->sortClause == NIL && select->limitOffset == NULL &&
		select->limitCount == NULL && select->lockingClause == NIL && select->withClause == NULL;
}

/* The raw expression that a text is. */
static Node *
parse(Subject *subject)
{
	List	   *parsed;
	SelectStmt *select;
	ResTarget  *target;

	if (strlen(subject->text) > MAX_EXPRESSION_BYTES)
		refuse(subject, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "it is longer than 10000 bytes", NULL);
	parsed = raw_parser(subject->text, RAW_PARSE_PLPGSQL_EXPR);
	select = list_length(parsed) == 1 ? (SelectStmt *) linitial_node(RawStmt, parsed)->stmt : NULL;
	if (select == NULL || !IsA(select, SelectStmt) || !is_only_expression(select))
		refuse(subject, ERRCODE_SYNTAX_ERROR, "it is not just one expression", NULL);
	target = linitial_node(ResTarget, select->targetList);
	if (target->name != NULL || target->indirection != NIL)
		refuse(subject, ERRCODE_SYNTAX_ERROR, "it is not just one expression", NULL);
	(void) look_at_raw(target->val, subject);
	return target->val;
}

static const char *
name_of(ColumnRef *ref)
{
	return strVal(linitial(ref->fields));
}

/* Parse an expression, and let errors show it. */
static Node *
parse_shown(Subject *subject)
{
	ErrorContextCallback callback;
	Node	   *raw;

	callback.previous = error_context_stack;
	callback.callback = show_expression;
	callback.arg = subject;
	error_context_stack = &callback;
	raw = parse(subject);
	error_context_stack = callback.previous;
	return raw;
}

/* tablesync.columns_of_expression(expression): the names of the columns in it */
Datum
tsync_columns_of_expression(PG_FUNCTION_ARGS)
{
	Subject		subject = {.setting = "filter or expressions",.text = text_to_cstring(PG_GETARG_TEXT_PP(0))};
	ListCell   *lc;
	Datum	   *names;
	int			count = 0;

	(void) parse_shown(&subject);
	names = palloc((list_length(subject.columns) + 1) * sizeof(Datum));
	foreach(lc, subject.columns)
		names[count++] = DirectFunctionCall1(namein, CStringGetDatum(name_of(lfirst(lc))));
	PG_RETURN_ARRAYTYPE_P(construct_array(names, count, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

/* How many bytes of a text are the identifier that it begins with? */
static int
length_of_identifier(const char *text)
{
	int			length = 1;

	if (*text == '"')
		for (;; length++)
		{
			if (text[length] == '\0')
				return length;
			if (text[length] == '"' && text[++length] != '"')
				return length;
		}
	while (isalnum((unsigned char) text[length]) || text[length] == '_' || text[length] == '$' || IS_HIGHBIT_SET(text[length]))
		length++;
	return length;
}

static int
compare_locations(const ListCell *a, const ListCell *b)
{
	return ((ColumnRef *) lfirst(a))->location - ((ColumnRef *) lfirst(b))->location;
}

/* tablesync.rename_in_expression(expression, from, to): the same over columns that have got other names */
Datum
tsync_rename_in_expression(PG_FUNCTION_ARGS)
{
	Subject		subject = {.setting = "filter or expressions",.text = text_to_cstring(PG_GETARG_TEXT_PP(0))};
	Datum	   *from;
	Datum	   *to;
	int			nfrom;
	int			nto;
	ListCell   *lc;
	int			copied = 0;
	StringInfoData buf;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &from, NULL, &nfrom);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &to, NULL, &nto);
	if (nfrom != nto)
		elog(ERROR, "as many new names are needed as old ones");
	(void) parse_shown(&subject);
	list_sort(subject.columns, compare_locations);
	initStringInfo(&buf);
	foreach(lc, subject.columns)
	{
		ColumnRef  *ref = lfirst(lc);

		for (int i = 0; i < nfrom; i++)
			if (strcmp(NameStr(*DatumGetName(from[i])), name_of(ref)) == 0)
			{
				appendBinaryStringInfo(&buf, subject.text + copied, ref->location - copied);
				appendStringInfoString(&buf, quote_identifier(NameStr(*DatumGetName(to[i]))));
				copied = ref->location + length_of_identifier(subject.text + ref->location);
				break;
			}
	}
	appendStringInfoString(&buf, subject.text + copied);
	PG_RETURN_TEXT_P(cstring_to_text(buf.data));
}

/* check_functions_in_node() callback: a function that the source may not have, or that may say another thing there. */
static bool
refuse_function(Oid function, void *arg)
{
	Subject    *subject = arg;

	if (function >= FirstGenbkiObjectId)
		refuse(subject, ERRCODE_FEATURE_NOT_SUPPORTED, psprintf("function %s is not built in", format_procedure(function)),
			   "The source computes the expression: only operators and functions of PostgreSQL itself can be used.");
	if (func_volatile(function) != PROVOLATILE_IMMUTABLE)
		refuse(subject, ERRCODE_INVALID_OBJECT_DEFINITION, psprintf("function %s is not immutable", format_procedure(function)),
			   "The result for a row must not change unless the row does. Compare with a constant: a date instead of now(), say.");
	return false;
}

/* Refuse what an analyzed expression must not have. */
static bool
refuse_unfit(Node *node, void *arg)
{
	Subject    *subject = arg;

	if (node == NULL)
		return false;
	check_stack_depth();
	if (IsA(node, Var) && ((Var *) node)->varattno <= 0)
		refuse(subject, ERRCODE_INVALID_COLUMN_REFERENCE, "it has a system column or a whole row", NULL);
	if (IsA(node, CoerceToDomain))
		refuse(subject, ERRCODE_FEATURE_NOT_SUPPORTED, "it has a domain", NULL);
	(void) check_functions_in_node(node, refuse_function, subject);
	return expression_tree_walker(node, refuse_unfit, arg);
}

/* Analyze an expression over the columns of a foreign table. */
static Node *
analyze(Relation source, Subject *subject, bool is_filter)
{
	ErrorContextCallback callback;
	ParseState *pstate = make_parsestate(NULL);
	Node	   *expression;

	callback.previous = error_context_stack;
	callback.callback = show_expression;
	callback.arg = subject;
	error_context_stack = &callback;
	expression = parse(subject);
	pstate->p_sourcetext = subject->text;
	addNSItemToQuery(pstate, addRangeTableEntryForRelation(pstate, source, AccessShareLock, NULL, false, false), false, true, true);
	expression = transformExpr(pstate, expression, is_filter ? EXPR_KIND_WHERE : EXPR_KIND_GENERATED_COLUMN);
	if (is_filter)
		expression = coerce_to_boolean(pstate, expression, "filter");
	else if (exprType(expression) == UNKNOWNOID)
		expression = coerce_type(pstate, expression, UNKNOWNOID, TEXTOID, -1, COERCION_IMPLICIT, COERCE_IMPLICIT_CAST, -1);
	assign_expr_collations(pstate, expression);
	free_parsestate(pstate);
	(void) refuse_unfit(expression, subject);
	if (contain_mutable_functions(expression))
		refuse(subject, ERRCODE_INVALID_OBJECT_DEFINITION, "it is not immutable", "Write a constant instead of what changes.");
	if (is_filter && subject->columns == NIL)
		refuse(subject, ERRCODE_INVALID_COLUMN_REFERENCE, "it has no column", "It would take all rows or none.");
	error_context_stack = callback.previous;
	return expression;
}

/* An expression as the server would write it, with settings of ours. */
static char *
write_expression(Relation source, Node *expression)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"}, {"datestyle", "ISO, YMD"}, {"intervalstyle", "postgres"},
		{"extra_float_digits", "3"}, {"bytea_output", "hex"}, {"quote_all_identifiers", "off"}
	};
	int			nestlevel = NewGUCNestLevel();
	char	   *text;

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	text = deparse_expression(expression, deparse_context_for(RelationGetRelationName(source), RelationGetRelid(source)), false, false);
	AtEOXact_GUC(true, nestlevel);
	return text;
}

/*
 * tablesync.check_expression(source, expression, setting, OUT canonical, OUT type,
 * OUT typmod, OUT is_constant): an error unless the expression can be that of a setting
 */
Datum
tsync_check_expression(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Subject		subject = {
		.text = text_to_cstring(PG_GETARG_TEXT_PP(1)),
		.setting = text_to_cstring(PG_GETARG_TEXT_PP(2))
	};
	TupleDesc	desc;
	Relation	source;
	Node	   *expression;
	Datum		values[4];
	bool		nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE || desc->natts != lengthof(values))
		elog(ERROR, "function has to return a row of four columns");
	if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK)	/* before it is locked */
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_TABLE, tsync_relation_label(relid));
	source = relation_open(relid, AccessShareLock);
	if (source->rd_rel->relkind != RELKIND_FOREIGN_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s is not a foreign table", tsync_relation_label(relid))));
	expression = analyze(source, &subject, strcmp(subject.setting, "filter") == 0);
	values[0] = CStringGetTextDatum(write_expression(source, expression));
	values[1] = ObjectIdGetDatum(exprType(expression));
	values[2] = Int32GetDatum(exprTypmod(expression));
	values[3] = BoolGetDatum(subject.columns == NIL);
	relation_close(source, NoLock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * tablesync.keep_runs_away(replica): from here to the end of the transaction no
 * run of the replica begins; false if one goes on
 */
Datum
tsync_keep_runs_away(PG_FUNCTION_ARGS)
{
	tsync_check_acts_for_owner(PG_GETARG_OID(0));
	PG_RETURN_BOOL(tsync_try_lock(TSYNC_LOCK_RUN, PG_GETARG_OID(0), ExclusiveLock, false));
}
