/*-------------------------------------------------------------------------
 *
 * bad_value.c
 *	  Which row of the source, and which of its columns, can not be read?
 *
 * A value may be at the source that can't travel: its text is no value here, or is
 * larger than a message may be.  The error names neither row nor, where the source
 * reports it, column.  So what was being read when it came is kept (reading.c), and read again
 * in halves until one row is left, and of that one column after the other.  That
 * takes about 30 small statements, of a run that has failed.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/xact.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "query/query.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Do not trouble the source for longer. */
#define SEARCH_MS 30000

/* Keys that one statement of a search lists. */
#define SEARCH_COMPOSITE_KEYS 200

typedef enum Outcome
{
	READABLE,
	UNREADABLE,
	TOO_LARGE					/* to be tried at once */
} Outcome;

typedef struct Search
{
	TsyncTable *table;
	TimestampTz until;
} Search;

/* What a statement of a search reads: rows by key, or the keys of a range or of a page. */
typedef struct Probe
{
	TsyncTable *table;
	List	   *keys;
	TsyncRange *range;
	char	  **after;
	int64		limit;
	TsyncRowSet *into;			/* for keys */
	Search	   *search;
	Outcome		outcome;
} Probe;

static void
ignore_row(TupleTableSlot *slot, void *arg)
{
}

/* Read what a probe says, in a transaction of the caller; false if that are too many bytes at once. */
static bool
read_probe(Search *search, Probe *probe)
{
	char	   *sql;

	if (probe->range != NULL)
	{
		tsync_select_into(search->table, TSYNC_SOURCE, tsync_sql_keys_of_range(probe->table, probe->range), probe->into);
		return true;
	}
	if (probe->keys == NIL)
	{
		tsync_read_page(probe->table, probe->after, true, probe->limit, probe->into);
		return true;
	}
	sql = probe->table->wide && list_length(probe->keys) > 1 ?
		tsync_sql_bytes_of_keys(probe->table, probe->keys) : NULL;
	if (sql != NULL && tsync_select_digest(search->table, TSYNC_SOURCE, sql).sum > TSYNC_GROUP_BYTES)
		return false;
	tsync_select_each(search->table, TSYNC_SOURCE, tsync_sql_fetch(probe->table, probe->keys),
					  NULL, ignore_row, NULL);
	return true;
}

/* Read what a probe says, in a transaction of its own. */
static void
perform_probe(void *arg)
{
	Probe	   *probe = arg;

	tsync_begin();
	probe->outcome = read_probe(probe->search, probe) ? READABLE : TOO_LARGE;
	tsync_commit();
}

/* Only an error about a value is an answer. */
static bool
is_answer(ErrorData *edata, void *arg)
{
	Probe	   *probe = arg;

	probe->outcome = UNREADABLE;
	return tsync_is_about_value(edata->sqlerrcode);
}

static Outcome
try_probe(Search *search, Probe *probe)
{
	if (GetCurrentTimestamp() > search->until)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("looking for the row took too long")));
	probe->search = search;
	(void) tsync_try(perform_probe, probe, is_answer, NULL);
	return probe->outcome;
}

/* The first key of a list whose row can't be read; NULL if there is none. */
static char **
search_keys(Search *search, List *keys)
{
	Probe		probe = {.table = search->table,.keys = keys};
	int			half = list_length(keys) / 2;
	Outcome		outcome;
	char	  **found;

	if (keys == NIL)
		return NULL;
	outcome = list_length(keys) > (search->table->nkeys == 1 ? TSYNC_GROUP_KEYS : SEARCH_COMPOSITE_KEYS) ?
		TOO_LARGE : try_probe(search, &probe);
	if (outcome == READABLE)
		return NULL;
	if (half == 0)
		return linitial(keys);
	found = search_keys(search, list_truncate(list_copy(keys), half));
	return found ? found : search_keys(search, list_copy_tail(keys, half));
}

/* The keys in a row set. */
static List *
list_of_keys(Search *search, TsyncRowSet *set)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(set->tupdesc, &TTSOpsMinimalTuple);
	List	   *keys = NIL;

	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_start(set);
	while (tsync_rowset_next(set, slot))
		keys = lappend(keys, tsync_key_of_slot(search->table, slot));
	tsync_commit();
	ExecDropSingleTupleTableSlot(slot);
	return keys;
}

/* Try to list a page of keys. */
static Outcome
try_page(Search *search, char **after, int64 limit, TsyncRowSet *into)
{
	Probe		probe = {.table = search->table,.after = after,.limit = limit,.into = into};

	tsync_rowset_clear(into);
	return try_probe(search, &probe);
}

/* The last key that can be read before one that can't; "after" if there is none. */
static char **
search_page(Search *search, char **after, TsyncRowSet *keys)
{
	int64		readable = 0;
	int64		unreadable = 1;
	List	   *list;

	while (try_page(search, after, unreadable, keys) == READABLE && keys->count >= unreadable)
	{
		readable = unreadable;
		unreadable *= 8;
	}
	while (unreadable - readable > 1)
	{
		int64		middle = readable + (unreadable - readable) / 2;

		if (try_page(search, after, middle, keys) == READABLE)
			readable = middle;
		else
			unreadable = middle;
	}
	if (readable == 0 || try_page(search, after, readable, keys) != READABLE)
		return after;
	list = list_of_keys(search, keys);
	return list == NIL ? after : llast(list);
}

/* A text without the bytes that are none of this database's encoding. */
static char *
only_valid(char *text)
{
	char	   *copy = pstrdup(text);

	if (!pg_verifymbstr(copy, strlen(copy), true))
		for (char *p = copy; *p; p++)
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
	return copy;
}

/* A key as PostgreSQL's messages show it. */
static char *
show_key(TsyncTable *table, char **key)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "(", table->keys[i]->quoted);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : ")=(", only_valid(key[i]));
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * What of a row can't be read: its key, or which columns, each for itself, up
 * to TSYNC_MAX_SHOWN of them; or only all together.
 */
static char *
search_columns(Search *search, char **key)
{
	TsyncTable *table = search->table;
	Probe		only_key = {.table = tsync_only_keys(table),.keys = list_make1(key)};
	StringInfoData columns;
	int			count = 0;

	if (try_probe(search, &only_key) == UNREADABLE)
		return "the key";
	initStringInfo(&columns);
	for (int i = 0; i < table->ncolumns && count < TSYNC_MAX_SHOWN; i++)
	{
		TsyncTable *part = tsync_only_keys(table);
		Probe		probe = {.table = part,.keys = list_make1(key)};

		if (tsync_is_key(table, &table->columns[i]))
			continue;
		part->columns[part->ncolumns++] = table->columns[i];
		if (try_probe(search, &probe) == UNREADABLE)
			appendStringInfo(&columns, "%s\"%s\"", count++ > 0 ? ", " : "", table->columns[i].name);
	}
	return count == 0 ? "more than one message can hold" :
		psprintf("a value of column%s %s", count > 1 ? "s" : "", columns.data);
}

/* Say what can't be read of what was being read; NULL if all of it can, now. */
static char *
search(Search *search, TsyncReading *reading)
{
	TsyncTable *table = search->table;
	char	  **start = reading->range == NULL ? reading->after : table->nrange == table->nkeys ? reading->range->lower : NULL;
	TsyncRowSet set;
	Probe		probe = {.table = table,.range = reading->range,.after = reading->after,.limit = reading->limit,.into = &set};
	List	   *keys = reading->keys;
	char	  **key;

	tsync_begin_in(CurrentMemoryContext);
	tsync_rowset_init(&set, "tsync_search", tsync_key_desc(table, 0));
	tsync_commit();
	if (keys == NIL && try_probe(search, &probe) == UNREADABLE)
	{
		key = search_page(search, start, &set);
		return psprintf("It was a key of foreign table %s, %s.", table->source_sql,
						key ? psprintf("in the row that follows key %s in the source's order", show_key(table, key)) :
						"in the first row in the source's order");
	}
	key = search_keys(search, keys == NIL ? list_of_keys(search, &set) : keys);
	if (key == NULL)
		return NULL;
	return psprintf("It was %s of foreign table %s, in the row with key %s.", search_columns(search, key),
					table->source_sql, show_key(table, key));
}

/*
 * From an error's context: was it the source that reported it, or a value of
 * which column could not be read?  NULL if neither.
 */
static char *
where_it_was(const char *context)
{
	if (context == NULL)
		return NULL;
	if (strstr(context, "remote SQL command"))
		return "The source reported this.";
	for (const char *column = strstr(context, "column \""); column != NULL; column = strstr(column + 1, "column \""))
	{
		char	   *line = pnstrdup(column, strcspn(column, "\n"));

		if (strstr(line, "\" of foreign table \""))
			return psprintf("It was a value of %s.", line);
	}
	return NULL;
}

/* What to do where the source lets us not look at what everybody usually may; the message has its name in any language. */
static char *
hint_about_catalog(const char *name)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(tsync_current_server()), (Datum) 0};
	char	   *hint;

	tsync_begin_in(caller);
	values[1] = CStringGetTextDatum(pnstrdup(name, strspn(name, "abcdefghijklmnopqrstuvwxyz_")));
	tsync_catalog_execute("SELECT tablesync.catalog_hint($1, $2)", lengthof(types), types, values, NULL);
	hint = tsync_result_text(0, 1);
	hint = hint ? MemoryContextStrdup(caller, hint) : NULL;
	tsync_commit();
	return hint;
}

/* What to do about an error of the source that refuses us something; NULL if it is another one. */
static char *
hint_about(ErrorData *edata)
{
	char	   *catalog = strstr(edata->message, " pg_");

	if (edata->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE || edata->context == NULL ||
		strstr(edata->context, "remote SQL command") == NULL)
		return NULL;
	if (catalog != NULL)
		return hint_about_catalog(catalog + 1);
	if (strstr(edata->context, "xmin"))
		return "Rows are compared by xmin, which grants on single columns do not include. At the source, grant SELECT on the table; or set fingerprint to version or row with tablesync_alter().";
	return NULL;
}

/* A search, and what it has found. */
typedef struct Finding
{
	TsyncReading *reading;
	char	   *text;
} Finding;

static void
perform_search(void *arg)
{
	Finding    *finding = arg;
	Search		state = {.table = finding->reading->table,.until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SEARCH_MS)};

	finding->text = search(&state, finding->reading);
}

/* Whatever goes wrong, and be it that the run is cancelled, only means that nothing is found. */
static bool
does_not_matter(ErrorData *edata, void *arg)
{
	return true;
}

/* Add to an error that has ended a run which row and column it came of, if it did.  Not in a transaction. */
void
tsync_explain_error(ErrorData *edata)
{
	char	   *where = where_it_was(edata->context);
	Finding		finding = {.reading = tsync_take_reading()};
	char	   *found;

	Assert(!IsTransactionState());
	if (finding.reading != NULL && tsync_is_about_value(edata->sqlerrcode))
		(void) tsync_try(perform_search, &finding, does_not_matter, NULL);
	found = finding.text;
	if (edata->hint == NULL)
		edata->hint = hint_about(edata);
	if (found != NULL && where != NULL && strncmp(where, "It", 2) != 0)
		found = psprintf("%s %s", where, found);
	if (edata->detail != NULL)
		edata->detail = found ? psprintf("%s %s", edata->detail, found) : edata->detail;
	else
		edata->detail = found ? found : where;
}
