/*-------------------------------------------------------------------------
 *
 * server.c
 *	  Foreign tables over the system catalogs behind a server.
 *
 * Users may not create tables in schema tablesync, so this is done with the
 * rights of the extension's owner, after a look at the caller's: who may use a
 * server may read its catalogs.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "execute/execute.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "source/source.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(tsync_home);
TSYNC_FUNCTION_INFO_V1(tsync_prepare_server);

/* tablesync.home(): where this database lives. */
Datum
tsync_home(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT "/%u",
											  GetSystemIdentifier(), MyDatabaseId)));
}

/*
 * Let the foreign tables that were made go away with the server or with the
 * extension, whichever is dropped first.
 */
void
tsync_tie_to_server(Oid table, Oid server, Oid extension)
{
	ObjectAddress created;
	ObjectAddress on_server;
	ObjectAddress of_extension;

	ObjectAddressSet(created, RelationRelationId, table);
	ObjectAddressSet(on_server, ForeignServerRelationId, server);
	ObjectAddressSet(of_extension, ExtensionRelationId, extension);
	deleteDependencyRecordsForSpecific(RelationRelationId, table, DEPENDENCY_NORMAL,
									   ForeignServerRelationId, server);
	recordDependencyOn(&created, &on_server, DEPENDENCY_AUTO);
	recordDependencyOn(&created, &of_extension, DEPENDENCY_AUTO_EXTENSION);
}

/* Make the missing foreign tables over a server's catalogs, as the extension's owner. */
static void
create_source_catalogs(Oid server)
{
	Oid			extension = get_extension_oid("tablesync", false);
	uint64		ncreated = tsync_record_oid("SELECT t.t::pg_catalog.oid FROM tablesync.create_source_catalog($1) t", server);
	Oid		   *created = palloc(Max(ncreated, 1) * sizeof(Oid));

	for (uint64 i = 0; i < ncreated; i++)
		created[i] = (Oid) tsync_result_int64(i, 1);
	for (uint64 i = 0; i < ncreated; i++)
		tsync_tie_to_server(created[i], server, extension);
}

/*
 * tablesync.prepare_server(server): make sure that the foreign tables exist
 * through which we read the catalogs of a source, and that the caller may read
 * them, who may use the server.  They belong to the extension's owner.  Those
 * who need the same server at the same time take turns.
 */
Datum
tsync_prepare_server(PG_FUNCTION_ARGS)
{
	ForeignServer *server = GetForeignServerByName(NameStr(*PG_GETARG_NAME(0)), false);
	AclResult	allowed = tsync_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(server->serverid), ObjectIdGetDatum(GetUserId())};

	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_FOREIGN_SERVER, server->servername);
	if (RecoveryInProgress())
		PG_RETURN_VOID();

	SPI_connect();
	tsync_record("SELECT FROM tablesync.source_catalogs_missing($1, $2)", lengthof(types), types, values, NULL);
	if (SPI_processed > 0)
	{
		LockDatabaseObject(ForeignServerRelationId, server->serverid, 0, ShareUpdateExclusiveLock);
		create_source_catalogs(server->serverid);
		tsync_record("SELECT tablesync.grant_source_catalogs($1, $2)", lengthof(types), types, values, NULL);
	}
	SPI_finish();
	PG_RETURN_VOID();
}
