/* A driver library for machines without a GPU: two GPUs, whose state is read from a file at every
   call, so that a test changes it while the agent runs. Lines of the file: KEY NUMBER. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15 };
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Rates;
static int devices[2] = {0, 1};

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
#define CHECK(device) { int code = trouble(device); if (code) return code; }

int nvmlInitWithFlags(unsigned flags) { return state("unloaded", 0) ? DRIVER_NOT_LOADED : OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = state("count", 2);
    return state("unloaded", 0) ? DRIVER_NOT_LOADED : OK;
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
    return text(out, size, *device ? "GPU-1" : "GPU-0");
}
int nvmlDeviceGetMemoryInfo(int *device, Memory *memory) {
    CHECK(device);
    if (*device) return NOT_SUPPORTED;
    memory->total = 80ull << 30;
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
int nvmlDeviceGetPowerUsage(int *device, unsigned *milliwatts) {
    CHECK(device);
    if (*device) return NOT_SUPPORTED;
    *milliwatts = 123500;
    return OK;
}
