/* Event files that TensorBoard opens: length, its masked CRC-32C, a protobuf Event, its masked
 * CRC-32C. The few message fields that scalars need are encoded by hand. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/metrics.h"

uint32_t crc32c(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return ~crc;
}

static uint32_t masked_crc(const void *data, size_t n)
{
    uint32_t crc = crc32c(data, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* ---- protobuf: a tag is field << 3 | wire type (0 varint, 1 64 bits, 2 length-delimited, 5 32
 * bits) ---- */

static void add_varint(Str *s, uint64_t x)
{
    for (; x >= 0x80; x >>= 7) str_add_n(s, (const char[]){(char)(x | 0x80)}, 1);
    str_add_n(s, (const char[]){(char)x}, 1);
}

static void add_bytes(Str *s, int field, const void *data, size_t n)
{
    add_varint(s, (uint64_t)(field << 3 | 2));
    add_varint(s, n);
    str_add_n(s, data, n);
}

static void add_fixed(Str *s, int field, const void *data, size_t n)
{
    add_varint(s, (uint64_t)(field << 3 | (n == 8 ? 1 : 5)));
    str_add_n(s, data, n);
}

static void begin_event(Str *event, int64_t step)
{
    double now = clock_wall_s();
    add_fixed(event, 1, &now, 8);
    add_varint(event, 2 << 3);
    add_varint(event, (uint64_t)step);
}

static Status write_record(EventFile *file, const Str *event)
{
    Str record = {0};
    uint64_t n = event->n;
    uint32_t crc = masked_crc(&n, 8);
    str_add_n(&record, (const char *)&n, 8);
    str_add_n(&record, (const char *)&crc, 4);
    str_add_n(&record, event->at, event->n);
    crc = masked_crc(event->at, event->n);
    str_add_n(&record, (const char *)&crc, 4);
    Status status = file_write(file->fd, record.at, record.n, file->path);
    str_deinit(&record);
    return status;
}

/* The first record names the format; a resumed run says START at its step, so that points of lost
 * steps are dropped by readers. */
static Status write_head(EventFile *file, int64_t first_step)
{
    Str event = {0}, log = {0};
    begin_event(&event, 0);
    add_bytes(&event, 3, "brain.Event:2", 13);
    Status status = write_record(file, &event);
    if (status == OK && first_step > 0) {
        str_clear(&event);
        begin_event(&event, first_step);
        add_varint(&log, 1 << 3);
        add_varint(&log, 1); /* SessionLog.START */
        add_bytes(&event, 7, log.at, log.n);
        status = write_record(file, &event);
    }
    str_deinit(&event);
    str_deinit(&log);
    return status;
}

Status event_file_open(const char *dir, int64_t first_step, EventFile *file)
{
    char host[64] = "host", path[4096];
    *file = (EventFile){.fd = -1};
    gethostname(host, sizeof host - 1);
    TRY(dir_create(dir));
    snprintf(path, sizeof path, "%s/events.out.tfevents.%010lld.%s.%d.0", dir,
             (long long)clock_wall_s(), host, (int)getpid());
    int fd;
    TRY(file_create(path, &fd));
    *file = (EventFile){.fd = fd, .path = xstrdup(path)};
    Status status = write_head(file, first_step);
    if (status != OK) event_file_close(file);
    return status;
}

Status event_file_scalars(EventFile *file, int64_t step, int n, const char *const *tag,
                          const double *value)
{
    Str event = {0}, summary = {0}, one = {0};
    for (int i = 0; i < n; i++) {
        float f = (float)value[i];
        str_clear(&one);
        add_bytes(&one, 1, tag[i], strlen(tag[i]));
        add_fixed(&one, 2, &f, 4);
        add_bytes(&summary, 1, one.at, one.n);
    }
    begin_event(&event, step);
    add_bytes(&event, 5, summary.at, summary.n);
    Status status = write_record(file, &event);
    str_deinit(&event);
    str_deinit(&summary);
    str_deinit(&one);
    return status;
}

void event_file_close(EventFile *file)
{
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    *file = (EventFile){.fd = -1};
}
