/*-------------------------------------------------------------------------
 *
 * file.c
 *	  The files of exports: their names, and that each is whole or not there.
 *
 * A file is written under the name of its attempt, which ends in ".part", and
 * gets its own name when all of it is on disk.  Names are made by the extension
 * alone, of numbers; two clusters, databases or lives of one never make the same.
 * Parts that crashed workers have left are removed by the next worker.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "execute/execute.h"
#include "export/export.h"
#include "miscadmin.h"
#include "process/process.h"
#include "storage/fd.h"

#define PART ".part"

/*
 * The directory, if nobody else may put files there: a symbolic link in the
 * place of a file of ours would have another one overwritten.
 */
static const char *
checked_directory(void)
{
	struct stat st;

	if (tsync_export_directory == NULL || tsync_export_directory[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tablesync.export_directory is not set")));
	if (stat(tsync_export_directory, &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not look at directory \"%s\": %m", tsync_export_directory)));
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" is no directory that only the user of the server may write to", tsync_export_directory)));
	return tsync_export_directory;
}

/* The path of a file of ours; an error if the name is not one that we make. */
char *
tsync_export_path(const char *file)
{
	const char *directory = checked_directory();

	if (file[0] == '.' || strspn(file, "0123456789-.abcdefghijklmnopqrstuvwxyz") != strlen(file))
		elog(ERROR, "invalid name of an export's file: \"%s\"", file);
	return psprintf("%s/%s", directory, file);
}

/* The same as a URI. */
char *
tsync_export_uri(const char *file)
{
	char	   *path = tsync_export_path(file);
	StringInfoData uri;

	initStringInfo(&uri);
	appendStringInfoString(&uri, "file://");
	for (unsigned char *c = (unsigned char *) path; *c; c++)
	{
		if (isalnum(*c) && *c < 128)
			appendStringInfoChar(&uri, *c);
		else if (strchr("/-._~", *c) != NULL)
			appendStringInfoChar(&uri, *c);
		else
			appendStringInfo(&uri, "%%%02X", *c);
	}
	return uri.data;
}

/* Make the empty file that an attempt writes; returns its path. */
char *
tsync_create_part(TsyncExport *export)
{
	char	   *part = tsync_export_path(psprintf("%s.%d" PART, export->file, export->attempt));
	int			fd;

	tsync_remove_file(part);
	fd = OpenTransientFilePerm(part, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | PG_BINARY, S_IRUSR | S_IWUSR);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", part)));
	/* whatever the umask is */
	if (fchmod(fd, (mode_t) tsync_export_file_mode) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not set permissions of file \"%s\": %m", part)));
	if (CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not close file \"%s\": %m", part)));
	return part;
}

/* All of it is written: put it on disk, and then give it its name. */
void
tsync_keep_part(TsyncExport *export, const char *part)
{
	(void) durable_rename(part, tsync_export_path(export->file), ERROR);
}

/* Remove a file, if it is there. */
void
tsync_remove_file(const char *path)
{
	if (unlink(path) != 0 && errno != ENOENT)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

/* The export that a part of ours belongs to, 0 if it is none. */
static int64
export_of_part(const char *name, const char *prefix)
{
	size_t		length = strlen(name);

	if (strncmp(name, prefix, strlen(prefix)) != 0 || length < sizeof(PART) ||
		strcmp(name + length - strlen(PART), PART) != 0)
		return 0;
	return strtoll(name + strlen(prefix), NULL, 10);
}

/* Remove the parts that no worker is writing any more.  In a transaction. */
void
tsync_sweep_parts(void)
{
	const char *directory = checked_directory();
	char	   *prefix = psprintf(UINT64_FORMAT "-%u-", GetSystemIdentifier(), MyDatabaseId);
	DIR		   *dir = AllocateDir(directory);
	struct dirent *entry;

	while ((entry = ReadDir(dir, directory)) != NULL)
	{
		int64		export_id = export_of_part(entry->d_name, prefix);

		if (export_id > 0 && !tsync_is_locked(TSYNC_LOCK_EXPORT, (uint32) export_id))
			tsync_remove_file(tsync_export_path(entry->d_name));
		CHECK_FOR_INTERRUPTS();
	}
	FreeDir(dir);
}
