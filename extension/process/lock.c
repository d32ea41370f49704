/*-------------------------------------------------------------------------
 *
 * lock.c
 *	  What processes of ours agree upon by advisory locks of their own kind.
 *
 * The fourth field keeps them apart from users' advisory locks (1 and 2), so
 * nobody can take or release one from SQL.  A lock of a process goes with it,
 * however it ends: there is nothing to clean up after a crash.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "miscadmin.h"
#include "process/process.h"
#include "storage/lock.h"

static LOCKTAG
lock_tag(TsyncLock kind, uint32 key)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, TSYNC_LOCK_CLASS, key, kind);
	return tag;
}

/* Try to take a lock, for this process or until the transaction ends. */
bool
tsync_try_lock(TsyncLock kind, uint32 key, int mode, bool for_process)
{
	LOCKTAG		tag = lock_tag(kind, key);

	return LockAcquire(&tag, mode, for_process, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Take a lock, and wait for it: only where nobody holds it for long. */
void
tsync_lock(TsyncLock kind, uint32 key, int mode, bool for_process)
{
	LOCKTAG		tag = lock_tag(kind, key);

	(void) LockAcquire(&tag, mode, for_process, false);
}

void
tsync_unlock(TsyncLock kind, uint32 key, int mode, bool for_process)
{
	LOCKTAG		tag = lock_tag(kind, key);

	(void) LockRelease(&tag, mode, for_process);
}

/* Release all advisory locks of this process, also those that code of a replica's owner has taken. */
void
tsync_unlock_all(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
}

/* Does somebody have a lock that keeps others from it?  In a transaction. */
bool
tsync_is_locked(TsyncLock kind, uint32 key)
{
	if (!tsync_try_lock(kind, key, ExclusiveLock, false))
		return true;
	tsync_unlock(kind, key, ExclusiveLock, false);
	return false;
}

/*
 * A worker that serves the queue has one of tablesync.max_workers slots.  Take
 * one for this process; 0 if there is none.
 */
int
tsync_take_slot(void)
{
	for (int slot = 1; slot <= tsync_max_workers; slot++)
		if (tsync_try_lock(TSYNC_LOCK_SLOT, slot, ExclusiveLock, true))
			return slot;
	return 0;
}

/* How many workers could have a slot now?  In a transaction. */
int
tsync_free_slots(void)
{
	int			slots = 0;

	for (int slot = 1; slot <= tsync_max_workers; slot++)
		slots += !tsync_is_locked(TSYNC_LOCK_SLOT, slot);
	return slots;
}
