// What a process that asks for it does when a mapped file cannot be read any more: the medium
// fails, or another program has cut the file short. The system then sends SIGBUS to whoever reads,
// in the middle of a product, where no status can be returned. Owns the handler of that signal;
// installs it for nobody who has not asked, and once: later calls change the name and the status.
#pragma once

namespace awqe {

// Throws Failure with AWQE_INVALID_ARGUMENT, and with AWQE_INTERNAL where the system takes no
// handler; see awqe_exit_on_unreadable_file().
void exit_on_unreadable_file(const char* program, int exit_status);

}  // namespace awqe
