// Filling a block; see batch.h.
#include "native/runtime/batch.h"

#include <algorithm>

namespace awqe {

size_t evaluate_block(Session* first) {
    struct Part {
        Session* session;
        size_t count;  // of its rows
    };
    Part parts[kMostBlockRows];
    size_t part_count = 0;
    size_t room = first->backend().block_rows();
    for (Session* session = first; session != nullptr && room > 0; session = session->next()) {
        const size_t remaining = session->remaining();
        if (remaining > 0 && session->reads_whole()) {
            if (part_count > 0) continue;  // the next block is its own
            parts[part_count++] = {session, remaining};
            break;
        }
        const size_t count = std::min(remaining, room);
        if (count > 0) parts[part_count++] = {session, count};
        room -= count;
    }
    if (part_count == 0) return 0;

    Row rows[kMostBlockRows];
    Block block = {rows, 0, 0, 0};
    for (const int gives : {0, 1, 2}) {  // nothing, hidden alone, logits
        for (size_t p = 0; p < part_count; ++p) {
            const Session& session = *parts[p].session;
            for (size_t i = 0; i < parts[p].count; ++i) {
                if ((session.wants_logits(i) ? 2 : session.wants_hidden() ? 1 : 0) != gives) {
                    continue;
                }
                rows[block.count++] = session.row(i);
                block.wanted += gives > 0 ? 1 : 0;
                block.heads += gives > 1 ? 1 : 0;
            }
        }
    }
    for (size_t p = 0; p < part_count; ++p) parts[p].session->prepare(parts[p].count);
    first->backend().evaluate(block);
    for (size_t p = 0; p < part_count; ++p) parts[p].session->advance(parts[p].count);
    return block.count;
}

}  // namespace awqe
