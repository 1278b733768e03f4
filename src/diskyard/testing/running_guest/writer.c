/* PID 1 of the emulated guest: writes numbered blocks to its disks, as blocks.py describes them.
 *
 * Each write is made with O_DIRECT on one disk after the other, and flushed before the next. What was
 * acknowledged leaves the machine on QEMU's debug port, in the lines that record.py describes: a byte is in
 * the host's file before the instruction that sends it ends.
 *
 * Its environment, from the kernel's command line: AFTER, GAP_US, and FIRST_SIZES with a size for each disk, 0
 * for that which it has now. Built with: gcc -static. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 4096, LINE_BYTES = 64, SLOTS = 200, DISKS_MOST = 16, DEBUG_PORT = 0xe9 };
enum { WAIT_US = 20000, RETRY_US = 100000, LOOKS_AT_SIZE = 32 };
#define SPREAD 2654435761u

struct disk {
    int fd;
    uint64_t size_bytes, stride_bytes;
};

static struct disk disks[DISKS_MOST];
static int disk_count;
static uint64_t expected[SLOTS]; /* the number of the last write to each slot */

/* -- what the host hears -------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[256];
    va_list given;
    va_start(given, format);
    vsnprintf(line, sizeof line, format, given);
    va_end(given);
    for (const char *at = line; *at; at++)
        outb(*at, DEBUG_PORT);
    outb('\n', DEBUG_PORT);
}

static void die(const char *doing)
{
    say("E %s: %s", doing, strerror(errno));
    reboot(RB_AUTOBOOT); /* QEMU ends instead: it is started with -no-reboot */
}

/* -- setting up ----------------------------------------------------------------------- */

static int no_dot(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* The modules' names begin with numbers, in the order in which they need one another. */
static void load_modules(void)
{
    struct dirent **entries;
    int count = scandir("/modules", &entries, no_dot, alphasort);
    if (count < 0)
        die("listing /modules");
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", entries[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            die(path);
        close(fd);
    }
}

static uint64_t number_in_environment(const char *name)
{
    const char *value = getenv(name);
    return value ? strtoull(value, NULL, 10) : 0;
}

/* One for each size in FIRST_SIZES. */
static void open_disks(void)
{
    const char *sizes = getenv("FIRST_SIZES");
    while (sizes && *sizes && disk_count < DISKS_MOST) {
        struct disk *disk = &disks[disk_count];
        char *rest, path[16];
        uint64_t first_size_bytes = strtoull(sizes, &rest, 10);
        sizes = *rest == ',' ? rest + 1 : rest;
        snprintf(path, sizeof path, "/dev/vd%c", 'a' + disk_count);
        while ((disk->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC)) < 0)
            usleep(WAIT_US); /* the host sees that nothing comes */
        if (ioctl(disk->fd, BLKGETSIZE64, &disk->size_bytes))
            die(path);
        if (!first_size_bytes)
            first_size_bytes = disk->size_bytes;
        disk->stride_bytes = first_size_bytes / SLOTS / BLOCK_BYTES * BLOCK_BYTES;
        say("S %d %llu", disk_count++, (unsigned long long)disk->size_bytes);
    }
}

/* -- blocks --------------------------------------------------------------------------- */

static int slot_of(uint64_t number)
{
    return number * SPREAD % SLOTS;
}

static void fill_block(char *block, uint64_t number, int disk)
{
    memset(block, number ? ' ' : 0, BLOCK_BYTES);
    for (char *line = block; number && line < block + BLOCK_BYTES; line += LINE_BYTES) {
        line[snprintf(line, LINE_BYTES, "diskyard guest: write %016llu, slot %04d, disk %02d",
                      (unsigned long long)number, slot_of(number), disk)] = ' ';
        line[LINE_BYTES - 1] = '\n';
    }
}

/* -- writing -------------------------------------------------------------------------- */

/* Read the slot, and say so if it does not hold what was written to it last. */
static int look(int index, int slot, uint64_t number)
{
    static char found[BLOCK_BYTES] __attribute__((aligned(BLOCK_BYTES)));
    static char wanted[BLOCK_BYTES], written[BLOCK_BYTES];
    const struct disk *disk = &disks[index];
    if (pread(disk->fd, found, BLOCK_BYTES, slot * disk->stride_bytes) != BLOCK_BYTES)
        return 0;
    fill_block(wanted, expected[slot], index);
    fill_block(written, number, index); /* one that failed, or was under way at a guest's death, may be there */
    if (memcmp(found, wanted, BLOCK_BYTES) && memcmp(found, written, BLOCK_BYTES))
        say("B read '%.50s' in slot %d of disk %d instead of write %llu", found, slot, index,
            (unsigned long long)expected[slot]);
    return 1;
}

/* One write on every disk. Returns whether all have acknowledged it. */
static int turn(uint64_t number)
{
    static char block[BLOCK_BYTES] __attribute__((aligned(BLOCK_BYTES)));
    int slot = slot_of(number);
    for (int i = 0; i < disk_count; i++) {
        fill_block(block, number, i);
        if (!look(i, slot, number) ||
            pwrite(disks[i].fd, block, BLOCK_BYTES, slot * disks[i].stride_bytes) != BLOCK_BYTES ||
            fdatasync(disks[i].fd)) {
            say("E write %llu on disk %d: %s", (unsigned long long)number, i, strerror(errno));
            return 0;
        }
    }
    expected[slot] = number;
    return 1;
}

static void look_at_sizes(void)
{
    for (int i = 0; i < disk_count; i++) {
        uint64_t size_bytes;
        if (ioctl(disks[i].fd, BLKGETSIZE64, &size_bytes) || size_bytes == disks[i].size_bytes)
            continue;
        disks[i].size_bytes = size_bytes;
        say("S %d %llu", i, (unsigned long long)size_bytes);
    }
}

static long long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

int main(void)
{
    if (ioperm(DEBUG_PORT, 1, 1))
        return 1; /* nobody can be told; the kernel panics */
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) && errno != EBUSY)
        die("mounting /dev");
    load_modules();
    open_disks();
    uint64_t after = number_in_environment("AFTER"), gap_us = number_in_environment("GAP_US");
    for (uint64_t number = after > SLOTS ? after - SLOTS + 1 : 1; number <= after; number++)
        expected[slot_of(number)] = number;
    for (uint64_t number = after + 1;; number++) {
        long long begun_us = now_us();
        while (!turn(number))
            usleep(RETRY_US);
        say("A %llu %lld", (unsigned long long)number, now_us() - begun_us);
        if (number % LOOKS_AT_SIZE == 0)
            look_at_sizes();
        usleep(gap_us);
    }
}
