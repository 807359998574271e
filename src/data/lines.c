/* The lines of a JSON lines file for those who read other records than texts to train on. */
#include "data/data_internal.h"

#include <stdlib.h>
#include <string.h>

struct DataLines {
    Arena arena; /* of the file's name */
    SourceFile file;
    Reader *reader;
};

enum { MAX_LINE_BYTES = 64 << 20 };

Status data_lines_open(const char *path, DataLines **out)
{
    SourceFiles files;
    if (!file_exists(path)) return fail(ERR_IO, "there is no file at %s", path);
    DataLines *lines = xcalloc(1, sizeof *lines);
    Status status = data_files_find(&lines->arena, path, &files);
    if (status == OK && files.n != 1)
        status = fail(ERR_ARG, "%s stands for %zu files; one is wanted", path, files.n);
    if (status == OK) {
        lines->file = files.at[0];
        lines->file.json = true; /* whatever it is called */
        status = data_reader_open(&lines->file, MAX_LINE_BYTES, &lines->reader);
    }
    if (status == OK)
        *out = lines;
    else
        data_lines_close(lines);
    return status;
}

void data_lines_close(DataLines *lines)
{
    if (!lines) return;
    data_reader_close(lines->reader);
    arena_deinit(&lines->arena);
    free(lines);
}

Status data_lines_next(DataLines *lines, DataLine *line)
{
    Record record;
    TRY(data_reader_next(lines->reader, &record));
    *line = (DataLine){.number = record.line, .json = record.bytes, .bad = record.bad};
    if (record.bad) snprintf(line->why, sizeof line->why, "%s", record.why);
    return OK;
}
