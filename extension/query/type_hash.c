/*-------------------------------------------------------------------------
 *
 * type_hash.c
 *	  Which types can be compared exactly, and how each is hashed in a way
 *	  that postgres_fdw ships.
 *
 * A fingerprint must come out the same at both ends for the same bytes, and
 * different for values that merely compare as equal.  Core's hash functions
 * serve the hash opclasses, so they are too weak for some types:
 *
 *	 - hashint8 (also under timestamps and times) folds its 64 bits to 32 by
 *	   combining both halves with XOR before it hashes: 0 and 4294967297 hash
 *	   alike.  We hash the high half as well: shifted down for bigint; for
 *	   timestamps as the beginning of the half hour (2^31 microseconds) that
 *	   holds the value, within which no two values fold to the same 32 bits.
 *	 - numeric ignores the scale, floats the sign of zero, intervals that 24
 *	   hours are not a day, jsonb the scale of its numbers.  For these, and
 *	   for every built-in type without a row in the table below, we hash the
 *	   bytes of the binary send function, as a one-element bytea array, where
 *	   that function is immutable (others do not ship).
 *
 * All of them are strict except the array form: a NULL column is handled by
 * the caller (fingerprint.c).
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "query/query.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* date_bin() came with PostgreSQL 14; of an older source both sides hash the bytes of the send function. */
#define DATE_BIN_VERSION 140000

/*
 * Half hours are counted so that the earliest timestamp begins one: no
 * result is then out of range.
 */
#define HALF_HOUR(timestamp) \
	"pg_catalog.date_bin('2147.483648 s'::pg_catalog.interval, " timestamp ", " \
	"'1999-12-31 23:42:25.107968'::pg_catalog.timestamp)"
#define TIMESTAMP_HASH(timestamp) \
	"pg_catalog.timestamp_hash_extended(" HALF_HOUR(timestamp) ", " \
	"pg_catalog.timestamp_hash_extended(" timestamp ", $s))"
#define UTC(timestamptz) \
	"pg_catalog.timezone('0'::pg_catalog.interval, " timestamptz ")"
#define ARRAY_SHAPE \
	"ARRAY[pg_catalog.array_ndims($c)" \
	", pg_catalog.array_lower($c, 1), pg_catalog.array_upper($c, 1)" \
	", pg_catalog.array_lower($c, 2), pg_catalog.array_upper($c, 2)" \
	", pg_catalog.array_lower($c, 3), pg_catalog.array_upper($c, 3)" \
	", pg_catalog.array_lower($c, 4), pg_catalog.array_upper($c, 4)" \
	", pg_catalog.array_lower($c, 5), pg_catalog.array_upper($c, 5)" \
	", pg_catalog.array_lower($c, 6), pg_catalog.array_upper($c, 6)]"
#define ARRAY_HASH \
	"pg_catalog.hash_array_extended($c, pg_catalog.hash_array_extended(" ARRAY_SHAPE ", $s))"
#define SEND_HASH \
	"pg_catalog.hash_array_extended(ARRAY[pg_catalog.%s($c)], $s)"

/* text, and so the replica, has one NaN; a value has 2^53 of them */
#define FLOAT_HASH(type) \
	"pg_catalog.hash_array_extended(ARRAY[pg_catalog." type "send(CASE WHEN $c OPERATOR(pg_catalog.=) 'NaN'::pg_catalog." type \
	" THEN 'NaN'::pg_catalog." type " ELSE $c END)], $s)"

/* $c is the column, $s the 64-bit seed; min_version of the source. */
typedef struct TypeHash
{
	Oid			type;
	int			min_version;
	const char *expression;
} TypeHash;

static const TypeHash type_hashes[] = {
	{BOOLOID, 0, "pg_catalog.hashint4extended($c::pg_catalog.int4, $s)"},
	{INT2OID, 0, "pg_catalog.hashint2extended($c, $s)"},
	{INT4OID, 0, "pg_catalog.hashint4extended($c, $s)"},
	{INT8OID, 0, "pg_catalog.hashint8extended($c OPERATOR(pg_catalog.>>) 32, pg_catalog.hashint8extended($c, $s))"},
	{OIDOID, 0, "pg_catalog.hashoidextended($c, $s)"},
	{CHAROID, 0, "pg_catalog.hashcharextended($c, $s)"},
	{NAMEOID, 0, "pg_catalog.hashnameextended($c, $s)"},
	{TEXTOID, 0, "pg_catalog.hashtextextended($c, $s)"},
	{VARCHAROID, 0, "pg_catalog.hashtextextended($c, $s)"},
	{BPCHAROID, 0, "pg_catalog.hashbpcharextended($c, pg_catalog.hashint4extended(pg_catalog.octet_length($c), $s))"},
	{BYTEAOID, 0, "pg_catalog.hash_array_extended(ARRAY[$c], $s)"},
	{UUIDOID, 0, "pg_catalog.uuid_hash_extended($c, $s)"},
	{FLOAT4OID, 0, FLOAT_HASH("float4")},
	{FLOAT8OID, 0, FLOAT_HASH("float8")},
	{TIMESTAMPOID, DATE_BIN_VERSION, TIMESTAMP_HASH("$c")},
	{TIMESTAMPTZOID, DATE_BIN_VERSION, TIMESTAMP_HASH(UTC("$c"))},
	/* arrays of elements whose own hash covers every bit */
	{INT2ARRAYOID, 0, ARRAY_HASH},
	{INT4ARRAYOID, 0, ARRAY_HASH},
	{OIDARRAYOID, 0, ARRAY_HASH},
	{BOOLARRAYOID, 0, ARRAY_HASH},
	{TEXTARRAYOID, 0, ARRAY_HASH},
	{VARCHARARRAYOID, 0, ARRAY_HASH},
	{NAMEARRAYOID, 0, ARRAY_HASH},
	{BYTEAARRAYOID, 0, ARRAY_HASH},
	{UUIDARRAYOID, 0, ARRAY_HASH},
	{DATEARRAYOID, 0, ARRAY_HASH},
	{INETARRAYOID, 0, ARRAY_HASH},
	{CIDRARRAYOID, 0, ARRAY_HASH},
	{INT4RANGEOID, 0, "pg_catalog.hash_range_extended($c, $s)"},
	{DATERANGEOID, 0, "pg_catalog.hash_range_extended($c, $s)"},
};

/* Types whose values mean something else, or nothing, in another database. */
static const Oid local_types[] = {
	REGPROCOID, REGPROCEDUREOID, REGOPEROID, REGOPERATOROID, REGCLASSOID,
	REGCOLLATIONOID, REGTYPEOID, REGCONFIGOID, REGDICTIONARYOID, REGROLEOID,
	REGNAMESPACEOID, ACLITEMOID, PG_NODE_TREEOID, PG_NDISTINCTOID,
	PG_DEPENDENCIESOID, PG_MCV_LISTOID, GTSVECTOROID, REFCURSOROID,
	PG_BRIN_BLOOM_SUMMARYOID, PG_BRIN_MINMAX_MULTI_SUMMARYOID
};

static const Oid key_types[] = {
	INT2OID, INT4OID, INT8OID, UUIDOID, DATEOID, TIMESTAMPOID, TIMESTAMPTZOID,
	NUMERICOID, TEXTOID, VARCHAROID, BPCHAROID
};

TSYNC_FUNCTION_INFO_V1(tsync_type_problem);

static bool
contains_type(const Oid *types, int ntypes, Oid type)
{
	for (int i = 0; i < ntypes; i++)
		if (types[i] == type)
			return true;
	return false;
}

static const char *
find_type_hash(Oid type, int version)
{
	for (int i = 0; i < lengthof(type_hashes); i++)
		if (type_hashes[i].type == type && version >= type_hashes[i].min_version)
			return type_hashes[i].expression;
	return NULL;
}

/* Name of the type's send function if it ships, else NULL. */
static char *
shippable_send_function(Oid type)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	Oid			send;
	char		typtype;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	send = ((Form_pg_type) GETSTRUCT(tuple))->typsend;
	typtype = ((Form_pg_type) GETSTRUCT(tuple))->typtype;
	ReleaseSysCache(tuple);

	if (typtype != TYPTYPE_BASE || type >= FirstGenbkiObjectId ||
		!OidIsValid(send) || func_volatile(send) != PROVOLATILE_IMMUTABLE)
		return NULL;
	return get_func_name(send);
}

static void
append_template(StringInfo buf, const char *template, const char *column, const char *seed)
{
	for (const char *p = template; *p; p++)
	{
		if (p[0] == '$' && p[1] == 'c')
			appendStringInfoString(buf, column), p++;
		else if (p[0] == '$' && p[1] == 's')
			appendStringInfoString(buf, seed), p++;
		else
			appendStringInfoChar(buf, *p);
	}
}

/*
 * Append an expression of type bigint that hashes a column with a seed, both
 * SQL expressions.  "version" is the source's server_version_num; the replica
 * must be asked with the same one.
 */
void
tsync_append_hash(StringInfo buf, TsyncColumn *column, const char *seed, int version)
{
	const char *template = find_type_hash(column->type, version);

	if (template == NULL)
	{
		char	   *send = shippable_send_function(column->type);

		if (send == NULL)
			elog(ERROR, "type %u of column %s has no exact hash", column->type, column->quoted);
		template = psprintf(SEND_HASH, quote_identifier(send));
	}
	append_template(buf, template, column->quoted, seed);
}

/* Can every difference between two values of the type be seen in a hash? */
bool
tsync_can_hash(Oid type)
{
	return find_type_hash(type, DATE_BIN_VERSION) != NULL ||
		shippable_send_function(type) != NULL;
}

bool
tsync_can_be_key(Oid type)
{
	return contains_type(key_types, lengthof(key_types), type);
}

/* Do source and replica sort the type alike, whatever their collations? */
bool
tsync_orders_alike(Oid type)
{
	return tsync_can_be_key(type) && !OidIsValid(get_typcollation(type));
}

bool
tsync_is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/* Most bytes that a value may have in text form, -1 when unknown or large. */
int
tsync_max_bytes(Oid type, int32 typmod)
{
	int16		typlen = get_typlen(type);

	if (typlen > 0)
		return 64;
	if (type == NUMERICOID)
		return typmod >= 0 ? 1024 : -1;
	if ((type == VARCHAROID || type == BPCHAROID) && typmod >= (int32) VARHDRSZ)
		return (typmod - VARHDRSZ) * pg_database_encoding_max_length();
	return -1;
}

/*
 * Append an expression for the bytes a value of the column takes, where the
 * source can tell without sending it.
 */
bool
tsync_append_size(StringInfo buf, TsyncColumn *column)
{
	const char *template;

	switch (column->type)
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
			template = "pg_catalog.octet_length($c)";
			break;
		case JSONOID:
			template = "pg_catalog.octet_length(pg_catalog.json_send($c))";
			break;
		case JSONBOID:
			template = "pg_catalog.octet_length(pg_catalog.jsonb_send($c))";
			break;
		default:
			return false;
	}
	append_template(buf, template, column->quoted, "");
	return true;
}

/*
 * tablesync.type_problem(type, key, hashed): why a column of the type
 * can't be replicated exactly, or NULL when it can.  "hashed" asks for a type
 * whose every difference shows in a fingerprint.
 */
Datum
tsync_type_problem(PG_FUNCTION_ARGS)
{
	Oid			type = PG_GETARG_OID(0);
	bool		key = PG_GETARG_BOOL(1);
	bool		hashed = PG_GETARG_BOOL(2);
	Oid			element = get_element_type(type);
	Oid			base = OidIsValid(element) ? element : type;
	char		typtype = get_typtype(base);
	const char *problem = NULL;

	if (contains_type(local_types, lengthof(local_types), base))
		problem = "values of type %s have no meaning in another database";
	else if (typtype != TYPTYPE_BASE && typtype != TYPTYPE_ENUM &&
			 !((typtype == TYPTYPE_RANGE || typtype == TYPTYPE_MULTIRANGE) && base < FirstGenbkiObjectId))
		problem = "type %s is neither a base type nor an enum";
	else if (key && !tsync_can_be_key(type))
		problem = "type %s is not supported in a key";
	else if (hashed && !tsync_can_hash(type))
		problem = "values of type %s can't be compared exactly without fetching them";

	if (problem == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(problem, format_type_be(type))));
}
