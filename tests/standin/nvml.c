/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1 (NVML), for hosts without a GPU.
 *
 * It imitates the calls that nvidia-ml-py 13 makes for supervisor/host/gpus.py, with the symbols and structs of
 * driver 510 and later: nvmlMemory_v2_t, nvmlProcessInfo_v2_t. It imitates neither CUDA nor MIG.
 *
 * Everything is read afresh in each call from the directory that the environment names in LLMD_NVML_DIR:
 *
 *   gpus          One `key=value ...` line for the host and one `gpu N key=value ...` line per card, N from 0.
 *                 Written by FakeGpus (nvml.py), which lists the keys. In values `_` stands for a space.
 *   held.d/PID    What process PID holds, one line per card: `N BYTES [C|G|CG]` (compute, graphics, both).
 *                 Other names in held.d are ignored, so write to such a name and rename. The file of a dead or
 *                 zombie process counts for nothing: killing an engine gives its memory back. With `linger=S`
 *                 on the card that happens S seconds after this library first saw the process dead.
 *   xids.d/N      An XID error that is to be reported: `CARD XID`. Taken, the lowest N first, by a wait of a set in
 *                 which that card is registered.
 *
 * As in NVML: v1 `used` includes the reserved memory and v2 `used` does not; a lost GPU fails every call that
 * takes its handle; after `generation` changes (a driver reload) calls fail as uninitialised until everyone who
 * called nvmlInit has called nvmlShutdown, and one calls nvmlInit anew. A
 * host with `api=old` has neither memory v2 nor processes v3.
 */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18, UNKNOWN = 999,
};
enum { MAX_LINE = 1024, MAX_HELD = 256 };
static const unsigned long long NOT_AVAILABLE = -1ULL;

typedef unsigned long long bytes_t;
typedef struct { unsigned version; bytes_t total, reserved, free, used; } memory_v2_t;
typedef struct { bytes_t total, free, used; } memory_t;
typedef struct { unsigned pid; bytes_t used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_t;
typedef struct { int pid; bytes_t size; char kind[4]; int alive; } held_t;
typedef struct { void *device; unsigned long type, data; unsigned gpu_instance, compute_instance; } event_t;
typedef struct { unsigned long long cards; } set_t;

static int users;
static long generation;

/* --- the state on disk --- */

static FILE *open_state(const char *name) {
    const char *directory = getenv("LLMD_NVML_DIR");
    char path[4096];
    if (!directory) return NULL;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return fopen(path, "r");
}

/* The line of card `index`, or of the host for -1. 0 where there is none. */
static int find_line(int index, char line[MAX_LINE]) {
    FILE *file = open_state("gpus");
    int number, found = 0;
    if (!file) return 0;
    while (!found && fgets(line, MAX_LINE, file)) {
        int is_gpu = sscanf(line, "gpu %d ", &number) == 1;
        found = index < 0 ? !is_gpu : is_gpu && number == index;
    }
    fclose(file);
    return found;
}

/* The value of `key` in a line, `otherwise` where it is absent. */
static const char *text(const char *line, const char *key, const char *otherwise, char value[MAX_LINE]) {
    size_t length = strlen(key);
    for (const char *at = strstr(line, key); at; at = strstr(at + 1, key)) {
        if ((at == line || at[-1] == ' ') && at[length] == '=') {
            snprintf(value, MAX_LINE, "%.*s", (int)strcspn(at + length + 1, " \n"), at + length + 1);
            for (char *c = value; *c; c++) if (*c == '_') *c = ' ';
            return value;
        }
    }
    snprintf(value, MAX_LINE, "%s", otherwise);
    return value;
}

static double number(const char *line, const char *key, double otherwise) {
    char value[MAX_LINE];
    return *text(line, key, "", value) ? strtod(value, NULL) : otherwise;
}

static bytes_t size(const char *line, const char *key) {
    char value[MAX_LINE];
    return strtoull(text(line, key, "0", value), NULL, 10);
}

static int status(const char *line, const char *key) {
    char value[MAX_LINE];
    text(line, key, "ok", value);
    if (!strcmp(value, "ok") || !strcmp(value, "unsized")) return SUCCESS;
    if (!strcmp(value, "not supported")) return NOT_SUPPORTED;
    if (!strcmp(value, "no permission")) return NO_PERMISSION;
    if (!strcmp(value, "driver mismatch")) return LIB_RM_VERSION_MISMATCH;
    if (!strcmp(value, "not loaded")) return DRIVER_NOT_LOADED;
    if (!strcmp(value, "lost")) return GPU_IS_LOST;
    return UNKNOWN;
}

/* --- processes and what they hold --- */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int is_alive(int pid) {
    char path[64], stat[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = 0;
    const char *state = strrchr(stat, ')');  /* "PID (NAME) STATE ...", and a NAME may hold parentheses */
    return state && !strchr("ZX", state[2]);
}

/* Seconds since this library first saw the process dead. */
static double dead_for(int pid) {
    static struct { int pid; double since; } dead[MAX_HELD];
    static int count;
    for (int i = 0; i < count; i++) if (dead[i].pid == pid) return now() - dead[i].since;
    if (count < MAX_HELD) { dead[count].pid = pid; dead[count++].since = now(); }
    return 0;
}

/* All that is held on a card, by the living and by the dead whose memory lingers. */
static int read_held(int index, const char *line, held_t held[MAX_HELD]) {
    char name[300], entry[128];
    int gpu, count = 0;
    const char *root = getenv("LLMD_NVML_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/held.d", root ? root : "");
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *file; (file = readdir(directory));) {
        if (strspn(file->d_name, "0123456789") != strlen(file->d_name)) continue;
        snprintf(name, sizeof name, "held.d/%s", file->d_name);
        FILE *stream = open_state(name);
        int pid = atoi(file->d_name), alive = is_alive(pid);
        int counts = alive || dead_for(pid) < number(line, "linger", 0);
        while (stream && fgets(entry, sizeof entry, stream) && count < MAX_HELD) {
            held_t *item = &held[count];
            *item = (held_t){.pid = pid, .alive = alive, .kind = "C"};
            if (sscanf(entry, "%d %llu %3s", &gpu, &item->size, item->kind) >= 2 && gpu == index) count += counts;
        }
        if (stream) fclose(stream);
    }
    closedir(directory);
    return count;
}

/* --- the calls' common beginning --- */

static int ready(void) {
    char line[MAX_LINE];
    if (!users || !find_line(-1, line)) return UNINITIALIZED;
    return (long)number(line, "generation", 0) == generation ? SUCCESS : UNINITIALIZED;
}

static int index_of(void *device) { return (int)(intptr_t)device - 1; }

/* Finds the card's line; fails as the card is told to fail. */
static int card(void *device, char line[MAX_LINE]) {
    int result = ready();
    if (result) return result;
    if (!find_line(index_of(device), line)) return INVALID_ARGUMENT;
    return status(line, "memory") == GPU_IS_LOST ? GPU_IS_LOST : SUCCESS;
}

/* Sleeps while the card hangs; looks again and again, so that a test can end the hang. */
static int hang(void *device, char line[MAX_LINE]) {
    double begun = now();
    int result;
    while (!(result = card(device, line)) && now() - begun < number(line, "hang", 0))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    return result;
}

static int copy(void *device, const char *key, char *target, unsigned length) {
    char line[MAX_LINE], value[MAX_LINE];
    int result = card(device, line);
    if (!result) snprintf(target, length, "%s", text(line, key, "?", value));
    return result;
}

static int gauge(void *device, const char *key, unsigned *target) {
    char line[MAX_LINE], value[MAX_LINE];
    int result = card(device, line);
    if (result) return result;
    if (!*text(line, key, "", value)) return NOT_SUPPORTED;
    *target = (unsigned)strtoul(value, NULL, 10);
    return SUCCESS;
}

/* --- NVML --- */

int nvmlInitWithFlags(unsigned flags) {
    char line[MAX_LINE];
    (void)flags;
    if (!find_line(-1, line)) return DRIVER_NOT_LOADED;
    int result = status(line, "init");
    if (result) return result;
    if (!users++) generation = (long)number(line, "generation", 0);
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    static char message[32];
    snprintf(message, sizeof message, "error %d", result);
    return message;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    char line[MAX_LINE], value[MAX_LINE];
    int result = ready();
    if (result) return result;
    find_line(-1, line);
    snprintf(version, length, "%s", text(line, "driver", "580.0", value));
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char line[MAX_LINE];
    int result = ready();
    if (result) return result;
    for (*count = 0; find_line((int)*count, line);) ++*count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    char line[MAX_LINE];
    int result = ready();
    if (result) return result;
    if (!find_line((int)index, line)) return INVALID_ARGUMENT;
    *device = (void *)(intptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) { return copy(device, "uuid", uuid, length); }

int nvmlDeviceGetName(void *device, char *name, unsigned length) { return copy(device, "name", name, length); }

int nvmlDeviceGetPciInfo_v3(void *device, pci_t *pci) {
    memset(pci, 0, sizeof *pci);
    return copy(device, "pci", pci->bus_id, sizeof pci->bus_id);
}

static int is_old(void) {
    char line[MAX_LINE], value[MAX_LINE];
    return find_line(-1, line) && !strcmp(text(line, "api", "new", value), "old");
}

static int measure(void *device, memory_v2_t *memory) {
    char line[MAX_LINE];
    held_t held[MAX_HELD];
    int result = hang(device, line);
    if (result || (result = status(line, "memory"))) return result;
    memory->total = size(line, "total");
    memory->reserved = size(line, "reserved");
    memory->used = 0;
    for (int i = read_held(index_of(device), line, held); i--;) memory->used += held[i].size;
    bytes_t available = memory->total - memory->reserved;
    if (memory->used > available) memory->used = available;
    memory->free = available - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory) {
    return is_old() ? FUNCTION_NOT_FOUND : measure(device, memory);
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    memory_v2_t whole;
    int result = measure(device, &whole);
    if (!result) *memory = (memory_t){whole.total, whole.free, whole.reserved + whole.used};
    return result;
}

/* A null array or one too small: INSUFFICIENT_SIZE with the count that it takes, unless that is 0. */
static int list(void *device, char kind, unsigned *count, process_t *processes) {
    char line[MAX_LINE], value[MAX_LINE];
    held_t held[MAX_HELD];
    if (is_old()) return FUNCTION_NOT_FOUND;
    int result = hang(device, line);
    if (result || (result = status(line, "processes"))) return result;
    int unsized = !strcmp(text(line, "processes", "ok", value), "unsized");
    unsigned room = processes ? *count : 0;
    *count = 0;
    for (int i = read_held(index_of(device), line, held); i--;) {
        if (!held[i].alive || !strchr(held[i].kind, kind)) continue;
        if (*count < room)
            processes[*count] = (process_t){(unsigned)held[i].pid, unsized ? NOT_AVAILABLE : held[i].size, -1, -1};
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    return list(device, 'C', count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    return list(device, 'G', count, processes);
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *utilization) {
    utilization->memory = 0;
    return gauge(device, "utilization", &utilization->gpu);
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *temperature) {
    (void)sensor;
    return gauge(device, "temperature", temperature);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { return gauge(device, "power", milliwatts); }

/* --- events --- */

int nvmlEventSetCreate(set_t **set) {
    int result = ready();
    if (!result) *set = calloc(1, sizeof **set);
    return result;
}

int nvmlEventSetFree(set_t *set) {
    free(set);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, set_t *set) {
    char line[MAX_LINE];
    int result = card(device, line);
    (void)types;
    if (result || (result = status(line, "events"))) return result;
    set->cards |= 1ULL << index_of(device);
    return SUCCESS;
}

/* The first that waits for one of these cards, taken away. 0 where there is none. */
static int take_xid(const set_t *set, event_t *event) {
    const char *root = getenv("LLMD_NVML_DIR");
    char path[4096], name[300];
    int first = -1, index;
    unsigned long xid;
    snprintf(path, sizeof path, "%s/xids.d", root ? root : "");
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *file; (file = readdir(directory));) {
        if (strspn(file->d_name, "0123456789") != strlen(file->d_name)) continue;
        if (first < 0 || atoi(file->d_name) < first) first = atoi(file->d_name);
    }
    closedir(directory);
    if (first < 0) return 0;
    snprintf(name, sizeof name, "xids.d/%d", first);
    FILE *stream = open_state(name);
    if (!stream) return 0;
    int known = fscanf(stream, "%d %lu", &index, &xid) == 2;
    fclose(stream);
    if (!known || !(set->cards >> index & 1)) return 0;
    snprintf(path, sizeof path, "%s/%s", root, name);
    unlink(path);
    *event = (event_t){.device = (void *)(intptr_t)(index + 1), .type = 8, .data = xid, .gpu_instance = -1, .compute_instance = -1};
    return 1;
}

/* As NVML's: every card of the set must be there. */
static int lost(const set_t *set) {
    char line[MAX_LINE];
    for (int index = 0; index < 64; index++)
        if (set->cards >> index & 1 && card((void *)(intptr_t)(index + 1), line) == GPU_IS_LOST) return 1;
    return 0;
}

int nvmlEventSetWait_v2(set_t *set, event_t *event, unsigned milliseconds) {
    double begun = now();
    for (;;) {
        int result = ready();
        if (result) return result;
        if (take_xid(set, event)) return SUCCESS;
        if (lost(set)) return GPU_IS_LOST;
        if (now() - begun >= milliseconds / 1000.0) return TIMEOUT;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

/* --- health --- */

int nvmlDeviceGetPersistenceMode(void *device, unsigned *mode) { return gauge(device, "persistence", mode); }

int nvmlDeviceGetTemperatureThreshold(void *device, unsigned kind, unsigned *temperature) {
    (void)kind;
    return gauge(device, "threshold", temperature);
}

int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned counter, unsigned long long *errors) {
    unsigned count = 0;
    int result = gauge(device, "ecc", &count);
    (void)kind, (void)counter;
    *errors = count;
    return result;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    unsigned bits = 0;
    int result = gauge(device, "throttle", &bits);
    *reasons = bits;
    return result;
}

int nvmlDeviceGetRemappedRows(
    void *device, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed
) {
    unsigned state = 0;
    int result = gauge(device, "remap", &state);
    *correctable = *uncorrectable = 0;
    *pending = state & 1;
    *failed = state >> 1;
    return result;
}
