/* A driver library for machines without a GPU. Its state is read from a file at every call, so that a
   test changes it while the agent runs. Lines of the file: KEY NUMBER. Keys: count (GPUs, 2), first
   (number in the UUID of GPU 0), memory_mib, used_mib, utilization, processes, ecc_errors, throttle
   (bits), lost (index of a GPU off the bus), unloaded (1: no driver), error (code of every question
   about the whole), delay_ms. GPU 1 is an old one that does not tell its memory, unless memory_mib is
   set. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OK = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
    FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15
};
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } Process;
static int devices[8] = {0, 1, 2, 3, 4, 5, 6, 7};

static int state(const char *key, int otherwise) {
    char word[64];
    int number, found = otherwise;
    FILE *file = fopen(getenv("FAKE_NVML_STATE"), "r");
    while (file && fscanf(file, "%63s %d", word, &number) == 2)
        if (!strcmp(word, key)) found = number;
    if (file) fclose(file);
    return found;
}
static int text(char *out, unsigned size, const char *value) {
    snprintf(out, size, "%s", value);
    return OK;
}
static int trouble(int *device) { /* what every call about a device checks first */
    usleep(1000 * state("delay_ms", 0));
    if (state("unloaded", 0)) return DRIVER_NOT_LOADED;
    return *device == state("lost", -1) ? GPU_IS_LOST : OK;
}
static int whole(void) { return state("unloaded", 0) ? DRIVER_NOT_LOADED : state("error", OK); }
#define CHECK(device) { int code = trouble(device); if (code) return code; }
/* A question about a device: the GPUs that are old do not know the answer, the others say it. */
#define ANSWER(name, type, value, otherwise) \
    int name(int *device, type *out) { \
        CHECK(device); \
        if (*device && otherwise) return otherwise; \
        *out = value; \
        return OK; \
    }

int nvmlInitWithFlags(unsigned flags) { return whole(); }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = state("count", 2);
    return whole();
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, int **device) {
    *device = &devices[index];
    return trouble(*device);
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(out, size, "570.1"); }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12080; return OK; }
int nvmlDeviceGetName(int *device, char *out, unsigned size) {
    CHECK(device);
    return text(out, size, *device ? "Fake Old" : "Fake H100");
}
int nvmlDeviceGetUUID(int *device, char *out, unsigned size) {
    CHECK(device);
    snprintf(out, size, "GPU-%d", state("first", 0) + *device);
    return OK;
}
int nvmlDeviceGetMemoryInfo(int *device, Memory *memory) {
    int mib = state("memory_mib", *device ? 0 : 81920);
    CHECK(device);
    if (!mib) return NOT_SUPPORTED;
    memory->total = (unsigned long long)mib << 20;
    memory->used = (unsigned long long)state("used_mib", 0) << 20;
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(int *device, int *major, int *minor) {
    CHECK(device);
    if (*device) return FUNCTION_NOT_FOUND;
    *major = 9, *minor = 0;
    return OK;
}
int nvmlDeviceGetUtilizationRates(int *device, Rates *rates) {
    CHECK(device);
    rates->gpu = state("utilization", 0);
    return OK;
}
int nvmlDeviceGetTemperature(int *device, int sensor, unsigned *celsius) {
    CHECK(device);
    *celsius = 40 + *device;
    return OK;
}
int nvmlDeviceGetTotalEccErrors(int *device, int kind, int counter, unsigned long long *errors) {
    CHECK(device);
    if (*device) return NOT_SUPPORTED;
    *errors = state("ecc_errors", 0);
    return OK;
}
int nvmlDeviceGetMigMode(int *device, unsigned *now, unsigned *pending) {
    CHECK(device);
    if (*device) return NOT_SUPPORTED;
    *now = *pending = 0;
    return OK;
}
int nvmlDeviceGetEccMode(int *device, int *now, int *pending) {
    CHECK(device);
    if (*device) return NOT_SUPPORTED;
    *now = *pending = 1;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(int *device, unsigned *count, Process *processes) {
    unsigned running = state("processes", 0), room = *count;
    CHECK(device);
    if (*device) return FUNCTION_NOT_FOUND;
    *count = running;
    if (running > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < running; i++) processes[i] = (Process){1000 + i, 1 << 20, 0, 0};
    return OK;
}
ANSWER(nvmlDeviceGetPowerUsage, unsigned, 123500, NOT_SUPPORTED)
ANSWER(nvmlDeviceGetEnforcedPowerLimit, unsigned, 700000, NOT_SUPPORTED)
ANSWER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, 5, FUNCTION_NOT_FOUND)
ANSWER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, 16, FUNCTION_NOT_FOUND)
ANSWER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, state("throttle", 0), NOT_SUPPORTED)
