/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between the supported major versions, 15 to 18.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TABLESYNC_COMPAT_H
#define TABLESYNC_COMPAT_H

#include "postgres.h"

#include "utils/backend_status.h"
#include "utils/wait_event.h"

/* 16 has what is inside of a varlena in a header of its own. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#if PG_VERSION_NUM < 150000
#error "tablesync needs PostgreSQL 15 or newer"
#endif

/* 18 puts it before a function's declaration, and not after. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* 17 took the error away with old_snapshot_threshold; ours tells of a scan that lasts too long. */
#ifndef ERRCODE_SNAPSHOT_TOO_OLD
#define ERRCODE_SNAPSHOT_TOO_OLD MAKE_SQLSTATE('7', '2', '0', '0', '0')
#endif

/* 16 renamed the 1-based access to the local copy of backend states. */
#if PG_VERSION_NUM >= 160000
#define tsync_backend_status(n) pgstat_get_local_beentry_by_index(n)
#else
#define tsync_backend_status(n) pgstat_fetch_stat_local_beentry(n)
#endif

/* 17 lets a worker connect as a role that has NOLOGIN. */
#if PG_VERSION_NUM >= 170000
#define TSYNC_CONNECT_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#define TSYNC_NEEDS_LOGIN false
#else
#define TSYNC_CONNECT_FLAGS 0
#define TSYNC_NEEDS_LOGIN true
#endif

/* 16 made the privilege checks of all kinds of objects one function. */
#if PG_VERSION_NUM >= 160000
#define tsync_server_aclcheck(server, role, mode) \
	object_aclcheck(ForeignServerRelationId, (server), (role), (mode))
#define tsync_function_aclcheck(function, role, mode) \
	object_aclcheck(ProcedureRelationId, (function), (role), (mode))
#else
#define tsync_server_aclcheck(server, role, mode) \
	pg_foreign_server_aclcheck((server), (role), (mode))
#define tsync_function_aclcheck(function, role, mode) \
	pg_proc_aclcheck((function), (role), (mode))
#endif

/* 17 can name an extension's wait events. */
#if PG_VERSION_NUM >= 170000
#define tsync_wait_event(name) WaitEventExtensionNew(name)
#else
#define tsync_wait_event(name) PG_WAIT_EXTENSION
#endif

/* 17 moved the number of a transaction that has no xid. */
#if PG_VERSION_NUM >= 170000
#define tsync_local_xid() (MyProc->vxid.lxid)
#else
#define tsync_local_xid() (MyProc->lxid)
#endif

/* 17 gave processes another number to be woken up by. */
#if PG_VERSION_NUM >= 170000
#define tsync_my_proc_number() (MyProcNumber)
#else
#define tsync_my_proc_number() (MyProc->pgprocno)
#endif

/* 17 can flush a message of logical decoding; the commit of its transaction does that for ours. */
#if PG_VERSION_NUM >= 170000
#define tsync_log_message(prefix, text, size) LogLogicalMessage((prefix), (text), (size), true, false)
#else
#define tsync_log_message(prefix, text, size) LogLogicalMessage((prefix), (text), (size), true)
#endif

/* 16 lets COPY TO call a function for each row, instead of a file. */
#if PG_VERSION_NUM >= 160000
#define tsync_begin_copy_to(pstate, query, path, options) \
	BeginCopyTo((pstate), NULL, (query), InvalidOid, (path), false, NULL, NIL, (options))
#else
#define tsync_begin_copy_to(pstate, query, path, options) \
	BeginCopyTo((pstate), NULL, (query), InvalidOid, (path), false, NIL, (options))
#endif

#endif							/* TABLESYNC_COMPAT_H */
