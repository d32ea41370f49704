/*-------------------------------------------------------------------------
 *
 * privilege.c
 *	  Whose rights a statement runs with.
 *
 * A worker is connected as the replica's owner, and does with that role's
 * rights whatever touches replica, foreign table and source.  The tables of
 * schema tablesync belong to the extension's owner, and nobody else may write
 * them: their rows are read back by C code, and by a superuser who looks at a
 * view.  So what is recorded there is written with the rights of the
 * extension's owner, around exactly one statement, in a security-restricted
 * context and with a search_path in which nobody else can create.
 *
 * Such a statement must never run code or evaluate values that belong to
 * somebody else: no table but ours, no type but built-in ones.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "process/process.h"
#include "query/query.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/syscache.h"

/* The owner of the extension's tables: who owns their schema. */
Oid
tsync_extension_owner(void)
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

/* The owner of a relation, InvalidOid if there is no such relation any more. */
Oid
tsync_owner_of(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Is the current user a member of the role that owns a relation? */
bool
tsync_acts_for_owner(Oid relid)
{
	Oid			owner = tsync_owner_of(relid);

	return OidIsValid(owner) && has_privs_of_role(GetUserId(), owner);
}

/* An error unless the current user is a member of the role that owns a table. */
void
tsync_check_acts_for_owner(Oid relid)
{
	if (!OidIsValid(tsync_owner_of(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!tsync_acts_for_owner(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, tsync_relation_label(relid));
}

/* May the current user see how a replica's runs go?  Its owner may, and pg_monitor. */
bool
tsync_may_see(Oid relid)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) || tsync_acts_for_owner(relid);
}

/*
 * Take on the rights of another role, until tsync_resume_identity() or the end
 * of the (sub)transaction by an error.
 */
TsyncIdentity
tsync_assume_identity(Oid role)
{
	TsyncIdentity previous;

	Assert(OidIsValid(role));
	GetUserIdAndSecContext(&previous.role, &previous.security);
	/* so that nothing in there sets another role or leaves a temporary object behind */
	SetUserIdAndSecContext(role, previous.security |
						   SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	previous.guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return previous;
}

void
tsync_resume_identity(TsyncIdentity previous)
{
	AtEOXact_GUC(true, previous.guc_level);
	SetUserIdAndSecContext(previous.role, previous.security);
}
