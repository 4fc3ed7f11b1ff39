// A mapped file that is cut short ends a process that asked for it with a sentence and a status;
// every other SIGBUS goes where it went before. Each case runs in a child.
#include "native/failure/unreadable_file.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

#include "native/failure/failure.h"
#include "native/format/mapped_file.h"
#include "tests/native/support/check.h"

namespace awqe::test {
namespace {

constexpr size_t kBytes = size_t{1} << 20;
constexpr int kStatus = 7;
constexpr int kHandled = 8;  // a handler of the test's own has run
constexpr int kBroken = 9;   // a check in the child

// In a folder of its own, so that its name can be anything.
class TemporaryFile {
  public:
    explicit TemporaryFile(const char* name) {
        const char* const directory = std::getenv("TMPDIR");
        folder_ = std::string(directory == nullptr ? "/tmp" : directory) + "/awq_edge_XXXXXX";
        CHECK(mkdtemp(folder_.data()) != nullptr);
        path_ = folder_ + "/" + name;
        std::FILE* const file = std::fopen(path_.c_str(), "w");
        CHECK(file != nullptr);
        std::fclose(file);
        cut(kBytes);
    }
    ~TemporaryFile() {
        unlink(path_.c_str());
        rmdir(folder_.c_str());
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    const std::string& path() const { return path_; }
    const std::string& folder() const { return folder_; }
    void cut(size_t bytes) const {
        CHECK_EQUAL(truncate(path_.c_str(), static_cast<off_t>(bytes)), 0);
    }

  private:
    std::string folder_;
    std::string path_;
};

struct End {
    int status;  // as waitpid() gives it
    std::string said;
};

// Runs `body` in a child, with SIGBUS as a program finds it.
End child_of(const std::function<void()>& body) {
    int ends[2];
    CHECK_EQUAL(pipe(ends), 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        try {
            body();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            _exit(kBroken);
        }
        _exit(0);
    }
    close(ends[1]);
    End end = {};
    char bytes[4096];
    for (ssize_t count; (count = read(ends[0], bytes, sizeof(bytes))) > 0;) {
        end.said.append(bytes, static_cast<size_t>(count));
    }
    close(ends[0]);
    CHECK_EQUAL(waitpid(child, &end.status, 0), child);
    return end;
}

void read_last_byte(const MappedFile& file) {
    [[maybe_unused]] const uint8_t byte =
        *static_cast<const volatile uint8_t*>(file.data() + file.size() - 1);
}

void check_exit(const End& end, int status) {
    CHECK(WIFEXITED(end.status));
    CHECK_EQUAL(WEXITSTATUS(end.status), status);
}

void check_signal(const End& end) {
    CHECK(WIFSIGNALED(end.status));
    CHECK_EQUAL(WTERMSIG(end.status), SIGBUS);
}

void with_information(int, siginfo_t*, void*) { _exit(kHandled); }
void with_number(int) { _exit(kHandled); }

// A handler that somebody else installs later, and that calls the one it finds.
struct sigaction found;
void hand_on(int number, siginfo_t* info, void* context) {
    found.sa_sigaction(number, info, context);
}
void install_and_hand_on() {
    struct sigaction action = {};
    action.sa_sigaction = hand_on;
    action.sa_flags = SA_SIGINFO;
    CHECK_EQUAL(sigaction(SIGBUS, &action, &found), 0);
}

// As a read of memory that belongs to no file would cause it.
void fault_without_file() {
    siginfo_t info = {};
    info.si_signo = SIGBUS;
    info.si_code = BUS_ADRERR;
    info.si_addr = &info;
    const long thread = syscall(SYS_gettid);
    CHECK_EQUAL(syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, SIGBUS, &info), 0l);
}

}  // namespace

TEST(a_file_that_was_cut_is_a_sentence_and_a_status) {
    const TemporaryFile temporary("a model.gguf");
    const End end = child_of([&] {
        const MappedFile file(temporary.path().c_str());
        exit_on_unreadable_file("program", kStatus);
        temporary.cut(4096);
        read_last_byte(file);
    });
    check_exit(end, kStatus);
    CHECK_EQUAL(end.said, "program: " + temporary.path() +
                              " cannot be read any more: its medium fails, or it was cut short "
                              "while it was in use.\n");
}

TEST(of_several_threads_one_says_it) {
    const TemporaryFile temporary("model.gguf");
    const End end = child_of([&] {
        exit_on_unreadable_file("an earlier name", kStatus + 1);
        exit_on_unreadable_file("program", kStatus);
        const MappedFile file(temporary.path().c_str());
        temporary.cut(0);
        std::thread threads[4];
        for (std::thread& thread : threads) thread = std::thread([&] { read_last_byte(file); });
        for (std::thread& thread : threads) thread.join();
    });
    check_exit(end, kStatus);
    CHECK_EQUAL(end.said.find("program: /"), size_t{0});
    CHECK_EQUAL(end.said.find('\n'), end.said.size() - 1);
}

TEST(a_name_cannot_command_a_terminal) {
    const TemporaryFile temporary(
        "\x1b[2J\x7f\xC2\x9B"
        "2J\xC3\x9B");
    const End end = child_of([&] {
        exit_on_unreadable_file("program", kStatus);
        const MappedFile file(temporary.path().c_str());
        temporary.cut(0);
        read_last_byte(file);
    });
    check_exit(end, kStatus);
    CHECK_EQUAL(end.said.find("program: " + temporary.folder() + "/?[2J??2J\xC3\x9B cannot"),
                size_t{0});
}

TEST(where_nobody_listens_the_status_is_the_same) {
    const TemporaryFile temporary("model.gguf");
    const End end = child_of([&] {
        exit_on_unreadable_file("program", kStatus);
        const MappedFile file(temporary.path().c_str());
        temporary.cut(0);
        int ends[2];
        CHECK_EQUAL(pipe(ends), 0);
        close(ends[0]);
        dup2(ends[1], STDERR_FILENO);
        signal(SIGPIPE, SIG_DFL);
        read_last_byte(file);
    });
    check_exit(end, kStatus);
}

TEST(who_has_not_asked_gets_the_signal) {
    const TemporaryFile temporary("model.gguf");
    const End end = child_of([&] {
        const MappedFile file(temporary.path().c_str());
        temporary.cut(0);
        read_last_byte(file);
    });
    check_signal(end);
    CHECK_EQUAL(end.said, "");
}

TEST(every_other_cause_goes_to_who_was_there_before) {
    for (const auto& cause : {std::function<void()>(fault_without_file),
                              std::function<void()>([] { CHECK_EQUAL(raise(SIGBUS), 0); })}) {
        check_exit(child_of([&] {
                       struct sigaction action = {};
                       action.sa_sigaction = with_information;
                       action.sa_flags = SA_SIGINFO;
                       CHECK_EQUAL(sigaction(SIGBUS, &action, nullptr), 0);
                       exit_on_unreadable_file("program", kStatus);
                       cause();
                   }),
                   kHandled);
        check_exit(child_of([&] {
                       signal(SIGBUS, with_number);
                       exit_on_unreadable_file("program", kStatus);
                       cause();
                   }),
                   kHandled);
    }
    check_signal(child_of([] {
        exit_on_unreadable_file("program", kStatus);
        raise(SIGBUS);
    }));
    check_exit(child_of([] {
                   signal(SIGBUS, SIG_IGN);
                   exit_on_unreadable_file("program", kStatus);
                   raise(SIGBUS);
               }),
               0);
}

TEST(no_handler_is_no_function_whatever_the_flags_say) {
    for (const auto none : {SIG_DFL, SIG_IGN}) {
        const End end = child_of([&] {
            struct sigaction action = {};
            action.sa_handler = none;
            action.sa_flags = SA_SIGINFO;
            CHECK_EQUAL(sigaction(SIGBUS, &action, nullptr), 0);
            exit_on_unreadable_file("program", kStatus);
            raise(SIGBUS);
        });
        if (none == SIG_DFL) {
            check_signal(end);
        } else {
            check_exit(end, 0);
        }
    }
}

TEST(asked_again_behind_a_handler_that_hands_on) {
    check_signal(child_of([] {
        exit_on_unreadable_file("program", kStatus);
        install_and_hand_on();
        exit_on_unreadable_file("program", kStatus);
        raise(SIGBUS);
    }));
    const TemporaryFile temporary("model.gguf");
    const End end = child_of([&] {
        exit_on_unreadable_file("an earlier name", kStatus + 1);
        install_and_hand_on();
        exit_on_unreadable_file("program", kStatus);
        const MappedFile file(temporary.path().c_str());
        temporary.cut(0);
        read_last_byte(file);
    });
    check_exit(end, kStatus);
    CHECK_EQUAL(end.said.find("program: /"), size_t{0});
}

TEST(names_and_statuses_that_say_nothing_are_refused) {
    const std::string longest(61, 'x');
    check_exit(child_of([&] { exit_on_unreadable_file(longest.c_str(), 255); }), 0);
    const auto refused = [](const std::string& program, int status) {
        try {
            exit_on_unreadable_file(program.c_str(), status);
        } catch (const Failure& failure) {
            return failure.status() == AWQE_INVALID_ARGUMENT;
        }
        return false;
    };
    CHECK(refused("", 1));
    CHECK(refused(longest + "x", 1));
    CHECK(refused("program", 0));
    CHECK(refused("program", 256));
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
