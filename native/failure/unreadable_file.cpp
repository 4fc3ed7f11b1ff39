// A handler of SIGBUS that names the file and ends the process; see unreadable_file.h. It finds the
// file in /proc/self/maps, so it knows every mapping of the process, those of other libraries too,
// and none has to be recorded. Calls what a signal handler may call, and allocates nothing.
#include "native/failure/unreadable_file.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "native/failure/failure.h"

namespace awqe {
namespace {

constexpr char kSentence[] =
    " cannot be read any more: its medium fails, or it was cut short while it was in use.\n";

// What the handler uses; of several threads with a fault, one at a time.
std::atomic_flag busy;
char program_name[64];
char line[sizeof(program_name) + 4096 + sizeof(kSentence)];
int status_at_exit;
struct sigaction earlier;

// /proc/self/maps, one byte after the other.
class Maps {
  public:
    Maps() : file_(open("/proc/self/maps", O_RDONLY | O_CLOEXEC)) { advance(); }
    ~Maps() {
        if (file_ >= 0) close(file_);
    }
    Maps(const Maps&) = delete;
    Maps& operator=(const Maps&) = delete;

    bool ended() const { return byte_ < 0; }
    bool at(char wanted) const { return byte_ == wanted; }
    bool within(int first, int last) const { return first <= byte_ && byte_ <= last; }
    char take() {
        const int byte = byte_;
        advance();
        return static_cast<char>(byte);
    }
    // A hexadecimal number, and the byte behind it.
    uintptr_t number() {
        uintptr_t value = 0;
        while (!ended()) {
            const char digit = take();
            if (digit >= '0' && digit <= '9') {
                value = value * 16 + static_cast<uintptr_t>(digit - '0');
            } else if (digit >= 'a' && digit <= 'f') {
                value = value * 16 + static_cast<uintptr_t>(digit - 'a' + 10);
            } else {
                break;
            }
        }
        return value;
    }
    void skip_word() {
        while (!ended() && !at(' ') && !at('\n')) take();
        while (at(' ')) take();
    }

  private:
    void advance() {
        if (at_ == count_) {
            at_ = 0;
            do {
                count_ = file_ < 0 ? 0 : read(file_, bytes_, sizeof(bytes_));
            } while (count_ < 0 && errno == EINTR);
        }
        byte_ = count_ > 0 ? static_cast<unsigned char>(bytes_[at_++]) : -1;
    }

    int file_;
    char bytes_[512];
    ssize_t at_ = 0;
    ssize_t count_ = 0;
    int byte_ = -1;
};

// Writes the path of the file that is mapped at `address`, at most `size` bytes of it; returns how
// many, 0 if there is no file.
size_t mapped_path(uintptr_t address, char* path, size_t size) {
    Maps maps;
    while (!maps.ended()) {
        const uintptr_t begin = maps.number();
        const uintptr_t end = maps.number();
        for (int field = 0; field < 4; ++field) maps.skip_word();  // rights, offset, device, inode
        const bool wanted = begin <= address && address < end && maps.at('/');
        size_t length = 0;
        while (!maps.ended() && !maps.at('\n')) {
            const char byte = maps.take();
            // Nothing that a terminal would obey; U+0080 to U+009F are two bytes of UTF-8.
            bool control = static_cast<unsigned char>(byte) < ' ' || byte == 0x7F;
            if (byte == '\xC2' && maps.within(0x80, 0x9F)) {
                maps.take();
                control = true;
            }
            if (wanted && length < size) path[length++] = control ? '?' : byte;
        }
        if (wanted) return length;
        if (!maps.ended()) maps.take();
    }
    return 0;
}

void exit_if_mapped(const void* address) {
    while (busy.test_and_set()) poll(nullptr, 0, 1);
    const size_t prefix = std::strlen(program_name);
    std::memcpy(line, program_name, prefix);
    char* end = line + prefix;
    end += mapped_path(reinterpret_cast<uintptr_t>(address), end,
                       sizeof(line) - prefix - sizeof(kSentence));
    if (end != line + prefix) {
        std::memcpy(end, kSentence, sizeof(kSentence) - 1);
        end += sizeof(kSentence) - 1;
        // Where nobody listens the status alone must do; SIGPIPE waits, and never comes.
        ssize_t written;
        do {
            written = write(STDERR_FILENO, line, static_cast<size_t>(end - line));
        } while (written < 0 && errno == EINTR);
        _exit(status_at_exit);
    }
    busy.clear();
}

void on_bus_error(int number, siginfo_t* info, void* context) {
    const int error = errno;
    if (info->si_code == BUS_ADRERR) exit_if_mapped(info->si_addr);
    errno = error;
    // It was about something else: whoever was there before decides. SIG_DFL and SIG_IGN are no
    // functions, whatever the flags beside them say.
    if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
        if ((earlier.sa_flags & SA_SIGINFO) != 0) {
            earlier.sa_sigaction(number, info, context);
        } else {
            earlier.sa_handler(number);
        }
        return;
    }
    const bool sent = info->si_code <= 0;  // by a program, not by a read
    if (earlier.sa_handler == SIG_IGN && sent) return;
    signal(number, SIG_DFL);
    if (sent) raise(number);  // comes when this handler has ended, as the read does
}

}  // namespace

void exit_on_unreadable_file(const char* program, int exit_status) {
    const size_t length = std::strlen(program);
    if (length == 0 || length + 2 >= sizeof(program_name)) {
        fail(AWQE_INVALID_ARGUMENT, "program has %zu bytes, and 1 to %zu are allowed", length,
             sizeof(program_name) - 3);
    }
    if (exit_status < 1 || exit_status > 255) {
        fail(AWQE_INVALID_ARGUMENT, "exit_status is %d, and 1 to 255 are allowed", exit_status);
    }
    static std::mutex installing;
    const std::lock_guard<std::mutex> lock(installing);
    std::memcpy(program_name, program, length);
    std::memcpy(program_name + length, ": ", 3);
    status_at_exit = exit_status;
    // Once: a handler that came later may call this one, and would be called by it again.
    static bool installed = false;
    if (installed) return;
    if (sigaction(SIGBUS, nullptr, &earlier) != 0) {
        fail(AWQE_INTERNAL, "the handler of SIGBUS is unknown: %s", std::strerror(errno));
    }
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGPIPE);  // of the sentence, where standard error is a closed pipe
    if (sigaction(SIGBUS, &action, nullptr) != 0) {
        fail(AWQE_INTERNAL, "SIGBUS cannot be handled: %s", std::strerror(errno));
    }
    installed = true;
}

}  // namespace awqe
