// Files that were cut off or damaged on the way: every prefix of a small valid file, every bit of
// its header flipped, and a bit of every byte in that of a file with a vision part. None may be
// read past its end or crash; a prefix must be refused. Meaningful under the `dev` preset's
// sanitizers.
#include "native/failure/failure.h"
#include "native/runtime/model.h"
#include "tests/native/support/check.h"
#include "tests/native/support/random_vision.h"

namespace awqe::test {
namespace {

// Whether a file is accepted. Anything thrown but Failure ends the test.
bool accepted(const uint8_t* bytes, size_t size) {
    try {
        const Model model(bytes, size);
        return true;
    } catch (const Failure& failure) {
        CHECK(failure.what()[0] != '\0');
        return false;
    }
}

}  // namespace

TEST(every_truncated_file_is_refused) {
    const Bytes whole = small_model().build();
    for (size_t size = 0; size < whole.size(); ++size) {
        const AlignedBytes cut(whole.data(), size);  // the sanitizer's red zone begins at `size`
        CHECK(!accepted(cut.data(), cut.size()));
    }
    const AlignedBytes all(whole);
    CHECK(accepted(all.data(), all.size()));
}

TEST(no_flipped_bit_crashes_the_reader) {
    const AlignedBytes file(small_model().build());
    size_t refused = 0;
    for (size_t i = 0; i < file.size(); ++i) {
        for (int bit = 0; bit < 8; ++bit) {
            file.data()[i] ^= static_cast<uint8_t>(1u << bit);
            if (!accepted(file.data(), file.size())) ++refused;
            file.data()[i] ^= static_cast<uint8_t>(1u << bit);
        }
    }
    CHECK(refused > file.size());  // most of this file is its header
}

TEST(no_flipped_bit_of_a_vision_part_crashes_the_reader) {
    const FileSpec spec = random_vision_model(vision_forms()[3]);
    size_t weights = 0;
    for (const TensorSpec& t : spec.tensors) weights += round_up(t.data.size(), 64);
    const AlignedBytes file(spec.build());
    const size_t header = file.size() - spec.tail - weights;
    size_t refused = 0;
    for (size_t i = 0; i < header; ++i) {
        const auto bit = static_cast<uint8_t>(1u << i % 8);
        file.data()[i] ^= bit;
        if (!accepted(file.data(), file.size())) ++refused;
        file.data()[i] ^= bit;
    }
    CHECK(refused > header / 2);
    CHECK(accepted(file.data(), file.size()));
}

TEST(no_random_damage_crashes_the_reader) {
    const AlignedBytes original(small_model().build());
    uint64_t state = 1;
    const auto random = [&] {
        return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33;
    };
    for (int round = 0; round < 20000; ++round) {
        const AlignedBytes file(original.data(), original.size());
        for (uint64_t changes = 1 + random() % 8; changes > 0; --changes) {
            // Small and huge numbers are where lengths and counts go wrong.
            static constexpr uint8_t kValues[] = {0x00, 0x01, 0x7F, 0x80, 0xFF};
            file.data()[random() % file.size()] = kValues[random() % 5];
        }
        accepted(file.data(), file.size());
    }
}

}  // namespace awqe::test

int main(int argc, char** argv) { return awqe::test::run(argc, argv); }
