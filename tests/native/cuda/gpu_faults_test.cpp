// What a program meets where a GPU is absent, too old, too small or breaks: one sentence each, and
// the CPU where the caller left the choice. Runs this program again on the emulated GPU of
// tests/native/emulated_gpu, once per fault, because a process opens the driver once.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "awq_edge.h"
#include "tests/native/support/check.h"
#include "tests/native/support/owned.h"

namespace awqe::test {
namespace {

constexpr size_t kTokens = 6;

// In the process with the fault: says what is known of the GPU.
int describe() {
    awqe_gpu gpu = {};
    gpu.struct_size = sizeof(gpu);
    awqe_error error = {};
    if (awqe_gpu_get(&gpu, &error) != AWQE_OK) return 2;
    double rate = -1;
    if (awqe_gpu_read_bandwidth(&rate, &error) != AWQE_OK || rate != 0)
        return 2;  // it has no clock
    std::printf("%s%s", gpu.in_place ? "in place" : "copied", gpu.copy_reason);
    return 0;
}

// In the process with the fault: decodes some tokens, prints who computed how far, and a hash of
// the logits.
int decode(const char* file, awqe_device device, uint32_t gpu_layers) {
    awqe_error error = {};
    awqe_model* opened = nullptr;
    if (awqe_model_open(file, &opened, &error) != AWQE_OK) return 2;
    const OwnedModel model(opened);
    awqe_session_options options = {};
    options.struct_size = sizeof(options);
    options.device = static_cast<uint32_t>(device);
    options.context_length = 16;
    options.gpu_layers = gpu_layers;
    awqe_session* started = nullptr;
    awqe_status status = awqe_session_open(model.get(), &options, &started, &error);
    if (status != AWQE_OK) {
        std::printf("open %d: %s", status, error.message);
        return 0;
    }
    const OwnedSession session(started);
    awqe_model_info info = {};
    info.struct_size = sizeof(info);
    if (awqe_model_info_get(model.get(), &info, &error) != AWQE_OK) return 2;
    std::vector<float> logits(info.vocabulary_size);
    uint64_t hash = 0xCBF29CE484222325u;
    for (uint32_t token = 1; token <= kTokens; ++token) {
        status = awqe_session_evaluate(session.get(), &token, 1, AWQE_LOGITS_LAST, logits.data(),
                                       nullptr, nullptr, &error);
        if (status != AWQE_OK) {
            std::printf("evaluate %d: %s", status, error.message);
            return 0;
        }
        for (const float logit : logits) {
            uint32_t bits;
            std::memcpy(&bits, &logit, sizeof(bits));
            hash = (hash ^ bits) * 0x100000001B3u;
        }
    }
    const std::string kernels = awqe_session_kernels(session.get());
    const size_t layers = kernels.find(" layers on cuda, the others on ");
    const std::string who = kernels == "cuda"             ? "GPU"
                            : layers != std::string::npos ? kernels.substr(0, layers)
                                                          : "CPU";
    std::printf("%s %016llx", who.c_str(), static_cast<unsigned long long>(hash));
    return 0;
}

// What that process prints. `device`: behind it may stand ", stories", another model; also "gpu",
// which is described, and "cycles", with their number in the place of gpu_layers. `libraries`:
// where it looks for a driver, or NULL for where this one does.
std::string seen(const char* device, const std::string& machine, const char* libraries = nullptr,
                 uint32_t gpu_layers = 0) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        setenv("AWQE_EMULATED_GPU", machine.c_str(), 1);
        unsetenv("AWQ_EDGE_KERNELS");
        if (libraries != nullptr) setenv("LD_LIBRARY_PATH", libraries, 1);
        execl("/proc/self/exe", "gpu_faults_test", "--decode", device,
              std::to_string(gpu_layers).c_str(), nullptr);
        _exit(127);
    }
    close(ends[1]);
    std::string text;
    char part[512];
    for (ssize_t got; (got = read(ends[0], part, sizeof(part))) > 0;) {
        text.append(part, static_cast<size_t>(got));
    }
    close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fail(__FILE__, __LINE__, machine + ": the process ended with " + std::to_string(status));
    }
    return text;
}

// Bytes of this process in memory.
size_t resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    size_t all = 0;
    size_t resident = 0;
    statm >> all >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// In a process of its own: opens, decodes and closes again and again, by turns alone on the GPU and
// divided; prints by how many MB the process and what is taken of the GPU have grown since the
// beginning, whose tenth is not looked at.
int open_and_close(int times) {
    size_t resident = 0;
    uint64_t free_bytes = 0;
    for (int i = 0; i <= times; ++i) {
        if (i == times / 10 || i == times) {
            awqe_gpu gpu = {};
            gpu.struct_size = sizeof(gpu);
            awqe_error error = {};
            if (awqe_gpu_get(&gpu, &error) != AWQE_OK) return 2;
            if (i == times) {
                std::printf(
                    "%lld MB, %lld MB",
                    (static_cast<long long>(resident_bytes()) - static_cast<long long>(resident)) >>
                        20,
                    static_cast<long long>(free_bytes - gpu.free_bytes) >> 20);
                return 0;
            }
            resident = resident_bytes();
            free_bytes = gpu.free_bytes;
        }
        awqe_error error = {};
        awqe_model* opened = nullptr;
        if (awqe_model_open(AWQE_TEST_DATA "/tiny.awq.gguf", &opened, &error) != AWQE_OK) return 2;
        const OwnedModel model(opened);
        awqe_session_options options = {};
        options.struct_size = sizeof(options);
        options.device = AWQE_DEVICE_CUDA;
        options.gpu_layers = i % 2 == 0 ? 0 : 1;
        awqe_session* started = nullptr;
        if (awqe_session_open(model.get(), &options, &started, &error) != AWQE_OK) return 2;
        const OwnedSession session(started);
        // Twice in one form: the second time as a recorded step.
        for (uint32_t token = 1; token <= 2; ++token) {
            if (awqe_session_evaluate(session.get(), &token, 1, AWQE_LOGITS_LAST, nullptr, nullptr,
                                      nullptr, &error) != AWQE_OK) {
                return 2;
            }
        }
    }
    return 2;
}

// The logits of the CPU.
const std::string& hash_of_cpu() {
    static const std::string hash = seen("cpu", "").substr(4);
    return hash;
}

std::string status_text(const char* where, awqe_status status) {
    return std::string(where) + " " + std::to_string(status) + ": ";
}

// "cuda" is refused when it is opened with this status and a sentence that holds `words`; "auto"
// computes on the CPU.
void check_refused(const std::string& machine, awqe_status status, const std::string& words,
                   const char* libraries = nullptr) {
    const std::string cuda = seen("cuda", machine, libraries);
    if (cuda.find(status_text("open", status)) != 0 || cuda.find(words) == std::string::npos) {
        fail(__FILE__, __LINE__, machine + ": " + cuda);
    }
    CHECK_EQUAL(seen("auto", machine, libraries), "CPU " + hash_of_cpu());
}

}  // namespace

TEST(a_sound_gpu_gives_the_logits_of_the_cpu) {
    for (const char* machine : {"", "capability=87", "integrated", "capability=121"}) {
        CHECK_EQUAL(seen("cuda", machine), "GPU " + hash_of_cpu());
        CHECK_EQUAL(seen("auto", machine), "GPU " + hash_of_cpu());
    }
}

// Rows of few inputs, whose last block lies at the end of what is allocated.
TEST(short_rows_on_every_kind_of_gpu) {
    const std::string expected = seen("cpu, stories", "").substr(4);
    for (const char* machine : {"", "capability=87", "integrated,registers,capability=87"}) {
        CHECK_EQUAL(seen("cuda, stories", machine), "GPU " + expected);
        CHECK_EQUAL(seen("cuda, stories", machine, nullptr, 2), "2 of 5 " + expected);
    }
}

TEST(no_driver) {
    // A file that is no library hides any driver of this machine.
    char folder[] = "/tmp/no_driver_XXXXXX";
    CHECK(mkdtemp(folder) != nullptr);
    const std::string file = std::string(folder) + "/libcuda.so.1";
    close(open(file.c_str(), O_CREAT | O_WRONLY, 0600));
    check_refused("", AWQE_UNSUPPORTED,
                  "no NVIDIA driver is installed (libcuda.so.1 was not found)", folder);
    unlink(file.c_str());
    rmdir(folder);
}

TEST(a_driver_that_is_too_old) {
    check_refused("driver=11040", AWQE_UNSUPPORTED,
                  "the NVIDIA driver supports CUDA 11.4, needed is 12.0 (JetPack 6) or newer");
}

TEST(a_driver_without_a_gpu) {
    check_refused("devices=0", AWQE_UNSUPPORTED, "the NVIDIA driver finds no usable GPU");
    check_refused("cuInit=100", AWQE_UNSUPPORTED,
                  "the NVIDIA driver finds no usable GPU (CUDA_ERROR_100)");
}

TEST(a_gpu_that_is_too_old) {
    check_refused("capability=75", AWQE_UNSUPPORTED,
                  "the GPU Emulated GPU has compute capability 7.5, and this library has code for "
                  "9.0, 8.0 and newer");
}

TEST(kernels_that_the_driver_does_not_read) {
    for (const char* machine :
         {"cuModuleLoadData=200", "cuModuleLoadData=209", "cuModuleLoadData=222"}) {
        check_refused(machine, AWQE_UNSUPPORTED, "the driver cannot load the kernels");
    }
}

TEST(a_model_that_does_not_fit) {
    check_refused(
        "memory=100000", AWQE_OUT_OF_MEMORY,
        "the model would take 0.00 GB (weights 0.00, context 0.00, work 0.00) and the GPU "
        "Emulated GPU has 0.00 GB free: say --gpu-layers auto, or --device cpu");
}

TEST(layers_that_the_cpu_computes) {
    // Where CPU and GPU meet changes no bit.
    CHECK_EQUAL(seen("cuda", "", nullptr, 1), "1 of 3 " + hash_of_cpu());
    CHECK_EQUAL(seen("auto", "", nullptr, 1), "1 of 3 " + hash_of_cpu());
    for (const uint32_t all : {3u, 4u, AWQE_GPU_LAYERS_AUTO}) {
        CHECK_EQUAL(seen("cuda", "", nullptr, all), "GPU " + hash_of_cpu());
    }
    CHECK_EQUAL(seen("cuda", "integrated,registers", nullptr, 2), "2 of 3 " + hash_of_cpu());
}

TEST(layers_by_the_free_memory) {
    // From a GPU that holds the model to one that holds nothing.
    std::vector<std::string> order;
    std::vector<size_t> sizes = {size_t{16} << 20, size_t{2} << 20};
    for (size_t bytes = 950000; bytes > 600000; bytes -= 10000) sizes.push_back(bytes);
    for (const size_t bytes : sizes) {
        const std::string machine = "memory=" + std::to_string(bytes);
        std::string who = seen("cuda", machine, nullptr, AWQE_GPU_LAYERS_AUTO);
        const std::string out_of_memory = status_text("open", AWQE_OUT_OF_MEMORY);
        if (who.find(out_of_memory + "1 of 3 layers would take ") == 0) {
            who = "none";
            CHECK_EQUAL(seen("auto", machine, nullptr, AWQE_GPU_LAYERS_AUTO),
                        "CPU " + hash_of_cpu());
        } else {
            CHECK_EQUAL(who.substr(who.size() - 16), hash_of_cpu());
            who.resize(who.size() - 17);
        }
        if (order.empty() || order.back() != who) order.push_back(who);
    }
    std::string all;
    for (const std::string& who : order) all += who + ", ";
    CHECK_EQUAL(all, std::string("GPU, 2 of 3, 1 of 3, none, "));
}

TEST(weights_in_place_where_cpu_and_gpu_share_one_memory) {
    // A copy of anything but a token would fail here.
    const std::string no_copies = ",cuMemcpyHtoDAsync_v2=999@1";
    const std::string small = ",memory=33554432";  // its memory is read to time it
    for (const char* machine : {"integrated,registers", "integrated,page_tables"}) {
        CHECK_EQUAL(seen("gpu", machine + small), std::string("in place"));
        CHECK_EQUAL(seen("cuda", machine), "GPU " + hash_of_cpu());
        const std::string text = seen("cuda", std::string(machine) + no_copies);
        CHECK_EQUAL(text.find(status_text("evaluate", AWQE_DEVICE_LOST)), size_t{0});
    }
    // Elsewhere, and where the driver does not go along, they are copied.
    CHECK_EQUAL(seen("gpu", "registers" + small), std::string("copied"));
    CHECK_EQUAL(seen("gpu", "integrated" + small),
                std::string("copiedits driver registers no read-only memory"));
    for (const char* call : {"cuMemHostRegister_v2=801", "cuMemHostGetDevicePointer_v2=1"}) {
        const std::string machine = std::string("integrated,registers,") + call;
        const std::string reason = seen("gpu", machine + small);
        CHECK_EQUAL(reason.find("copiedits driver refuses to register the file (CUDA_ERROR_"),
                    size_t{0});
        CHECK_EQUAL(seen("cuda", machine), "GPU " + hash_of_cpu());
    }
    // Some pages are, the next are not: nothing is left registered.
    CHECK_EQUAL(seen("cuda", "integrated,registers,cuMemHostRegister_v2=801@2"),
                "GPU " + hash_of_cpu());
}

TEST(five_hundred_openings_leave_memory_flat) {
    CHECK_EQUAL(seen("cycles", "", nullptr, 500), std::string("0 MB, 0 MB"));
    CHECK_EQUAL(seen("cycles", "integrated,registers", nullptr, 100), std::string("0 MB, 0 MB"));
}

TEST(a_gpu_that_is_lost_while_weights_are_copied) {
    for (const char* fault : {"cuMemcpyHtoDAsync_v2=999@2", "cuStreamSynchronize=700"}) {
        const std::string text = seen("cuda", fault);
        CHECK_EQUAL(
            text.find(status_text("open", AWQE_DEVICE_LOST) + "the GPU failed to copy the weights"),
            size_t{0});
    }
}

TEST(memory_that_ends_at_any_allocation) {
    // Of weights, of the cache and of the step, one after the other until all succeed.
    for (const char* call : {"cuMemAlloc_v2", "cuMemHostAlloc"}) {
        size_t failed = 0;
        for (size_t which = 1;; ++which) {
            CHECK(which < 100);
            const std::string machine = std::string(call) + "=2@" + std::to_string(which);
            if (seen("cuda", machine) == "GPU " + hash_of_cpu()) break;
            check_refused(machine, AWQE_OUT_OF_MEMORY, "the GPU has no memory left to ");
            ++failed;
        }
        CHECK(failed >= 3);
    }
}

TEST(a_gpu_that_is_lost_while_it_computes) {
    // Nothing of what it held can be had again: the CPU would have to start anew, so no choice of
    // device hides it.
    for (const char* fault : {"cuLaunchKernelEx=700@40", "cuStreamSynchronize=999@2",
                              "cuGraphLaunch=719@3", "cuMemcpyDtoHAsync_v2=999@2"}) {
        for (const char* device : {"cuda", "auto"}) {
            const std::string text = seen(device, fault);
            if (text.find(status_text("evaluate", AWQE_DEVICE_LOST) + "the GPU failed to ") != 0 ||
                text.find("open the model again, or say --device cpu") == std::string::npos) {
                fail(__FILE__, __LINE__, std::string(fault) + ": " + text);
            }
        }
    }
}

TEST(a_graph_that_cannot_be_made) {
    const std::string text = seen("cuda", "cuGraphInstantiateWithFlags=2");
    CHECK_EQUAL(text.find(status_text("evaluate", AWQE_OUT_OF_MEMORY)), size_t{0});
}

}  // namespace awqe::test

int main(int argc, char** argv) {
    if (argc == 4 && std::strcmp(argv[1], "--decode") == 0) {
        const std::string device = argv[2];
        if (device == "gpu") return awqe::test::describe();
        if (device == "cycles") return awqe::test::open_and_close(std::atoi(argv[3]));
        const bool stories = device.find(", stories") != std::string::npos;
        const char* const file =
            stories ? AWQE_TEST_DATA "/stories260k.awq.gguf" : AWQE_TEST_DATA "/tiny.awq.gguf";
        return awqe::test::decode(file,
                                  device.find("cuda") == 0   ? AWQE_DEVICE_CUDA
                                  : device.find("auto") == 0 ? AWQE_DEVICE_AUTO
                                                             : AWQE_DEVICE_CPU,
                                  static_cast<uint32_t>(std::strtoul(argv[3], nullptr, 10)));
    }
    return awqe::test::run(argc, argv);
}
