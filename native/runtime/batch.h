// What several sessions read, cut into blocks of rows that go through the layers together. Owns the
// cutting, which changes no result: a row gives what it would give alone.
#pragma once

#include <cstddef>

#include "native/runtime/session.h"

namespace awqe {

// Computes the next block of `first` and the sessions that follow it by next(): their rows in that
// order, as many as fit; a picture whose rows see each other makes a block of its own. Returns how
// many that were; 0 when all have read everything. Throws Failure; what was read until then stays
// read.
size_t evaluate_block(Session* first);

}  // namespace awqe
