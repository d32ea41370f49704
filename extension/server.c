/*-------------------------------------------------------------------------
 *
 * server.c
 *	  Foreign tables over the system catalogs behind a server.
 *
 * Users may not create tables in schema tablesync, so this is done with the
 * rights of the extension's owner, after a look at the caller's.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(tsync_home);
PG_FUNCTION_INFO_V1(tsync_prepare_server);

/* tablesync.home(): where this database lives. */
Datum
tsync_home(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT "/%u",
											  GetSystemIdentifier(), MyDatabaseId)));
}

static Oid
schema_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACEOID,
										ObjectIdGetDatum(get_namespace_oid("tablesync", false)));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for schema tablesync");
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * tablesync.prepare_server(server): make sure that the foreign tables exist
 * through which we read the catalogs of a source.  They belong to the
 * extension's owner and can be read by everybody who has a user mapping.  They
 * go away with the server or the extension, whichever is dropped first.
 */
Datum
tsync_prepare_server(PG_FUNCTION_ARGS)
{
	ForeignServer *server = GetForeignServerByName(NameStr(*PG_GETARG_NAME(0)), false);
	AclResult	allowed = tsync_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	Oid			caller;
	int			security;
	Oid			argtype = OIDOID;
	Datum		argument = ObjectIdGetDatum(server->serverid);
	ObjectAddress extension;

	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_FOREIGN_SERVER, server->servername);

	ObjectAddressSet(extension, ExtensionRelationId, get_extension_oid("tablesync", false));
	GetUserIdAndSecContext(&caller, &security);
	SetUserIdAndSecContext(schema_owner(), security | SECURITY_LOCAL_USERID_CHANGE);
	SPI_connect();
	if (SPI_execute_with_args("SELECT t::oid FROM tablesync.create_source_catalog($1) t",
							  1, &argtype, &argument, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI failed: %s", SPI_result_code_string(SPI_result));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		ObjectAddress table;
		ObjectAddress on_server;
		bool		isnull;
		Datum		created = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		ObjectAddressSet(table, RelationRelationId, DatumGetObjectId(created));
		ObjectAddressSet(on_server, ForeignServerRelationId, server->serverid);
		deleteDependencyRecordsForSpecific(RelationRelationId, table.objectId, DEPENDENCY_NORMAL,
										   ForeignServerRelationId, server->serverid);
		recordDependencyOn(&table, &on_server, DEPENDENCY_AUTO);
		recordDependencyOn(&table, &extension, DEPENDENCY_AUTO_EXTENSION);
	}
	SPI_finish();
	SetUserIdAndSecContext(caller, security);
	PG_RETURN_VOID();
}
