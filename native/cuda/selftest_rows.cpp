// What is done to rows between products: embedding, angles, norms, quantisation, activations,
// routers, sums; see selftest.h.
#include <algorithm>
#include <cmath>
#include <functional>

#include "native/cuda/selftest.h"
#include "native/cuda/selftest_trial.h"

namespace awqe::cuda {
namespace {

constexpr size_t kLengths[] = {1, 15, 33, 96, 260, 1031};
constexpr size_t kGroupSizes[] = {32, 64, 128};
constexpr float kEpsilon = 1e-5f;

// Floats of every size that occurs and some that should not: zeros, tiny and huge numbers.
std::vector<float> unlike_reals(size_t count, Random& random) {
    static const float limits[] = {1.0f, 32.0f, 0x1p-90f, 0x1p-140f, 0x1p+60f, 0.0f};
    std::vector<float> numbers(count);
    float limit = 1.0f;
    for (size_t i = 0; i < count; ++i) {
        if (i % 32 == 0) limit = limits[random.below(6)];
        numbers[i] = random.real(limit);
    }
    return numbers;
}

// A norm on both sides.
struct TrialNorm {
    TrialNorm(const Trial& trial, size_t width, bool layer_norm, bool with_bias, Random& random)
        : layer(layer_norm),
          weight(random.reals(width, 2.0f)),
          bias(with_bias ? random.reals(width, 2.0f) : std::vector<float>()),
          weight_on_gpu(trial, weight),
          bias_on_gpu(trial, bias),
          norm{weight_on_gpu.get(), with_bias ? bias_on_gpu.get() : nullptr, kEpsilon, layer_norm} {
    }

    std::vector<float> of(const KernelTable& table, const std::vector<float>& x, size_t m) const {
        const size_t width = weight.size();
        std::vector<float> y(x.size());
        for (size_t row = 0; row < m; ++row) {
            const float* const from = x.data() + row * width;
            float* const to = y.data() + row * width;
            if (layer) {
                table.layer_norm(from, weight.data(), bias.empty() ? nullptr : bias.data(), width,
                                 kEpsilon, to);
            } else {
                table.rms_norm(from, weight.data(), width, kEpsilon, to);
            }
        }
        return y;
    }

    const bool layer;
    const std::vector<float> weight;
    const std::vector<float> bias;
    const DeviceArray<float> weight_on_gpu;
    const DeviceArray<float> bias_on_gpu;
    const NormWeights norm;
};

// One row, or three.
size_t rows_of(bool one) { return one ? 1 : 3; }

void check_norm(Trial& trial, bool layer, bool one) {
    Random random(12);
    const size_t m = rows_of(one);
    for (const size_t width : kLengths) {
        for (const size_t group_size : kGroupSizes) {
            const TrialNorm norm(trial, width, layer, layer && group_size != 64, random);
            const std::vector<float> x = random.reals(m * width, 8.0f);
            const DeviceArray<float> x_on_gpu(trial, x);
            const DeviceRows out(trial, m, width, group_size);
            trial.launches().quantize(x_on_gpu.get(), norm.norm, out.rows, m);
            const HostRows expected(trial.reference, norm.of(trial.reference, x, m), m, width,
                                    group_size);
            trial.count(out.is(expected));
        }
    }
}

void check_norm_floats(Trial& trial, bool layer) {
    Random random(13);
    constexpr size_t kRows = 3;
    for (const size_t width : kLengths) {
        for (const int how : {0, 1, 2}) {  // in place, sum with what is normed, norm of a sum
            const TrialNorm norm(trial, width, layer, layer && how != 1, random);
            const std::vector<float> stream = random.reals(kRows * width, 8.0f);
            const std::vector<float> branch = random.reals(kRows * width, 8.0f);
            std::vector<float> sum(stream.size());
            for (size_t i = 0; i < sum.size(); ++i) sum[i] = stream[i] + branch[i];
            std::vector<float> expected = norm.of(trial.reference,
                                                  how == 0   ? stream
                                                  : how == 1 ? branch
                                                             : sum,
                                                  kRows);
            for (size_t i = 0; i < sum.size() && how == 1; ++i) {
                expected[i] = stream[i] + expected[i];
            }
            const DeviceArray<float> stream_on_gpu(trial, stream);
            const DeviceArray<float> branch_on_gpu(trial, branch);
            trial.launches().norm(stream_on_gpu.get(), branch_on_gpu.get(), norm.norm, kRows, width,
                                  how);
            trial.count(stream_on_gpu.is(expected));
        }
    }
}

void check_quantize(Trial& trial, bool one) {
    Random random(11);
    const size_t m = rows_of(one);
    for (const size_t width : kLengths) {
        for (const size_t group_size : kGroupSizes) {
            for (const float odd : {0.0f, -__builtin_inff(), __builtin_nanf("")}) {
                std::vector<float> x = unlike_reals(m * width, random);
                if (odd != 0.0f) x[width / 2] = odd;  // its group alone has no scale then
                const DeviceArray<float> x_on_gpu(trial, x);
                const DeviceRows out(trial, m, width, group_size);
                trial.launches().quantize(x_on_gpu.get(), {}, out.rows, m);
                trial.count(out.is(HostRows(trial.reference, x, m, width, group_size)));
            }
        }
    }
}

void check_activate(Trial& trial, bool one) {
    Random random(16);
    const size_t m = rows_of(one);
    for (const size_t width : kLengths) {
        const size_t group_size = kGroupSizes[width % 3];
        for (const Activation activation :
             {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu}) {
            // Another half, one vector for all rows, nothing.
            for (const size_t factors : {m, size_t{1}, size_t{0}}) {
                std::vector<float> x = random.reals(m * width, 16.0f);
                x[0] = random.real(256.0f);
                const std::vector<float> factor = random.reals(factors * width, 16.0f);
                const size_t stride = factors == m ? width : 0;
                std::vector<float> y(x.size());
                for (size_t row = 0; row < m; ++row) {
                    trial.reference.activation[activation](
                        x.data() + row * width,
                        factors == 0 ? nullptr : factor.data() + row * stride, width,
                        y.data() + row * width);
                }
                const DeviceArray<float> x_on_gpu(trial, x);
                const DeviceArray<float> factor_on_gpu(trial, factor);
                const DeviceRows out(trial, m, width, group_size);
                trial.launches().activate(x_on_gpu.get(),
                                          factors == 0 ? nullptr : factor_on_gpu.get(), stride,
                                          static_cast<int>(activation), out.rows, m);
                trial.count(out.is(HostRows(trial.reference, y, m, width, group_size)));
            }
        }
    }
}

// Grid of a kernel with a thread per number.
Grid grid_of(size_t count, unsigned rows = 1) { return {divided(count, kThreads), rows}; }

void check_route(Trial& trial) {
    Random random(18);
    constexpr size_t kRows = 2;
    for (const size_t width : kLengths) {
        for (const size_t experts : {size_t{5}, size_t{19}}) {
            const std::vector<float> x = random.reals(kRows * width, 4.0f);
            const std::vector<float> router = random.reals(experts * width, 0.5f);
            const std::vector<float> shared = random.reals(width, 0.5f);
            std::vector<float> expected(kRows * (experts + 1));
            for (size_t row = 0; row < kRows; ++row) {
                float* const to = expected.data() + row * (experts + 1);
                const float* const from = x.data() + row * width;
                trial.reference.router(from, router.data(), width, 0, experts, to);
                trial.reference.router(from, shared.data(), width, 0, 1, to + experts);
            }
            const DeviceArray<float> x_on_gpu(trial, x);
            const DeviceArray<float> router_on_gpu(trial, router);
            const DeviceArray<float> shared_on_gpu(trial, shared);
            const DeviceArray<float> logits(trial, filled<float>(expected.size()));
            trial.launch()(trial.kernels("route"), {divided(experts + 1, 16), kRows}, kThreads, 0,
                           x_on_gpu.in(), router_on_gpu.in(), shared_on_gpu.in(),
                           static_cast<int>(width), static_cast<int>(experts), logits.get());
            trial.count(logits.is(expected));
        }
    }
}

void check_add_weighted(Trial& trial) {
    Random random(19);
    constexpr size_t kCount = 3;
    const std::vector<unsigned> rows = {4, 0, 2};
    for (const size_t width : kLengths) {
        for (const bool named : {true, false}) {
            const std::vector<float> part = random.reals(kCount * width, 4.0f);
            const std::vector<float> weights = random.reals(kCount, 1.0f);
            const std::vector<float> mixed = random.reals(5 * width, 4.0f);
            std::vector<float> expected = mixed;
            for (size_t i = 0; i < kCount; ++i) {
                float* const to = expected.data() + (named ? rows[i] : i) * width;
                for (size_t k = 0; k < width; ++k) {
                    const float product = weights[i] * part[i * width + k];
                    to[k] = to[k] + product;
                }
            }
            const DeviceArray<float> part_on_gpu(trial, part);
            const DeviceArray<unsigned> rows_on_gpu(trial, rows);
            const DeviceArray<float> weights_on_gpu(trial, weights);
            const DeviceArray<float> out(trial, mixed);
            trial.launch()(trial.kernels("add_weighted"), grid_of(width, kCount), kThreads, 0,
                           part_on_gpu.in(), named ? rows_on_gpu.in() : nullptr,
                           weights_on_gpu.in(), static_cast<int>(width), out.get());
            trial.count(out.is(expected));
        }
    }
}

void check_add(Trial& trial) {
    Random random(20);
    for (const size_t width : kLengths) {
        const std::vector<float> stream = random.reals(width, 4.0f);
        const std::vector<float> branch = random.reals(width, 4.0f);
        std::vector<float> expected(width);
        for (size_t i = 0; i < width; ++i) expected[i] = stream[i] + branch[i];
        const DeviceArray<float> out(trial, stream);
        const DeviceArray<float> branch_on_gpu(trial, branch);
        trial.launch()(trial.kernels("add"), grid_of(width), kThreads, 0, out.get(),
                       branch_on_gpu.in(), static_cast<int>(width));
        trial.count(out.is(expected));
    }
}

void check_cap(Trial& trial) {
    Random random(21);
    for (const size_t width : kLengths) {
        for (const float limit : {0.5f, 30.0f}) {
            std::vector<float> x = random.reals(width, 32.0f);
            x[width / 2] = random.real(0x1p+60f);
            const DeviceArray<float> out(trial, x);
            trial.launch()(trial.kernels("cap"), grid_of(width), kThreads, 0, out.get(),
                           static_cast<int>(width), limit);
            trial.reference.soft_cap(x.data(), width, limit);
            trial.count(out.is(x));
        }
    }
}

void check_gather(Trial& trial) {
    Random random(22);
    const std::vector<unsigned> rows = {3, 3, 0};
    for (const size_t width : kLengths) {
        const std::vector<float> from = random.reals(4 * width, 4.0f);
        std::vector<float> expected;
        for (const unsigned row : rows) {
            const auto at = from.begin() + static_cast<std::ptrdiff_t>(row * width);
            expected.insert(expected.end(), at, at + static_cast<std::ptrdiff_t>(width));
        }
        const DeviceArray<float> from_on_gpu(trial, from);
        const DeviceArray<unsigned> rows_on_gpu(trial, rows);
        const DeviceArray<float> to(trial, filled<float>(expected.size()));
        trial.launch()(trial.kernels("gather"), {static_cast<unsigned>(rows.size())}, kThreads, 0,
                       from_on_gpu.in(), rows_on_gpu.in(), static_cast<int>(width), to.get());
        trial.count(to.is(expected));
    }
}

std::vector<Row> rows_at(std::initializer_list<int> positions, unsigned tokens) {
    std::vector<Row> rows;
    for (const int position : positions) {
        Row row = {};
        row.token = static_cast<unsigned>(position * 7 + 3) % tokens;
        row.position = position;
        row.turns[0] = position;
        row.turns[1] = position + 5;
        row.turns[2] = 2 * position;
        rows.push_back(row);
    }
    return rows;
}

// What a structure has between its members is nobody's.
bool same_rows(const std::vector<Row>& a, const std::vector<Row>& b) {
    const auto same = [](const Row& x, const Row& y) {
        return x.token == y.token && x.position == y.position && x.cache == y.cache &&
               x.kept == y.kept && std::equal(x.turns, x.turns + 3, y.turns);
    };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

// Logits with equal ones, with ones that are not finite, and rows that keep none.
void check_likeliest(Trial& trial) {
    constexpr float kOdd[] = {0.0f, __builtin_inff(), -__builtin_inff(), __builtin_nanf("")};
    Random random(25);
    for (const size_t width : {size_t{1}, size_t{96}, size_t{1031}, size_t{2048}, size_t{5000}}) {
        for (const bool named : {false, true}) {
            const std::vector<unsigned> wanted = {2, 0, 1};
            const size_t m = wanted.size();
            const unsigned pieces = divided(width, awqe_cuda::kLikeliestNumbers);
            const auto whose = [&](size_t i) { return named ? wanted[i] : i; };
            std::vector<float> logits = random.reals(m * width, 8.0f);
            for (float& logit : logits) logit = std::floor(logit);  // many are equal
            for (size_t i = 1; i < m; ++i) logits[i * width + random.below(width)] = kOdd[i + 1];
            std::vector<float> kept = filled<float>(m * 2 * width);
            const DeviceArray<float> kept_on_gpu(trial, kept);
            std::vector<Row> rows = rows_at({7, 40, 131070}, 11);
            for (size_t t = 0; t < m; ++t) rows[t].kept = kept_on_gpu.get() + t * 2 * width;
            if (width == 1031) rows[1].kept = nullptr;
            std::vector<awqe_cuda::Likeliest> found = filled<awqe_cuda::Likeliest>(2 * m);
            std::vector<awqe_cuda::LogitPart> parts = filled<awqe_cuda::LogitPart>(m * pieces);
            std::vector<Row> next = filled<Row>(m);
            const DeviceArray<awqe_cuda::Likeliest> found_on_gpu(trial, found);
            const DeviceArray<awqe_cuda::LogitPart> parts_on_gpu(trial, parts);
            const DeviceArray<Row> next_on_gpu(trial, next);
            for (size_t i = 0; i < m; ++i) {
                const Row& row = rows[whose(i)];
                if (row.kept == nullptr) continue;
                const float* const own = logits.data() + i * width;
                const size_t odd = static_cast<size_t>(row.position % 2);
                std::copy_n(own, width, kept.data() + (whose(i) * 2 + odd) * width);
                awqe_cuda::LogitPart all = {-__builtin_inff(), UINT32_MAX, UINT32_MAX};
                for (unsigned p = 0; p < pieces; ++p) {
                    awqe_cuda::LogitPart part = {-__builtin_inff(), UINT32_MAX, UINT32_MAX};
                    const size_t end = std::min<size_t>(width, (p + 1) * size_t{2048});
                    for (size_t k = p * size_t{2048}; k < end; ++k) {
                        const unsigned token = static_cast<unsigned>(k);
                        if (!std::isfinite(own[k])) {
                            part.not_finite = std::min(part.not_finite, token);
                        } else if (own[k] > part.logit) {
                            part.logit = own[k];
                            part.token = token;
                        }
                    }
                    if (part.logit > all.logit) all.logit = part.logit, all.token = part.token;
                    all.not_finite = std::min(all.not_finite, part.not_finite);
                    parts[i * pieces + p] = part;
                }
                const unsigned token = all.not_finite == UINT32_MAX ? all.token : 0;
                found[odd * m + i] = {token, all.not_finite};
                if (named) continue;
                next[i] = row;
                next[i].token = token;
                next[i].position += 1;
                for (int& turn : next[i].turns) turn += 1;
            }
            const DeviceArray<float> logits_on_gpu(trial, logits);
            const DeviceArray<Row> rows_on_gpu(trial, rows);
            const DeviceArray<unsigned> wanted_on_gpu(trial, wanted);
            const std::vector<unsigned> zeros(m);
            const DeviceArray<unsigned> arrivals(trial, zeros);
            trial.launch()(trial.kernels("likeliest"), {pieces, static_cast<unsigned>(m)}, kThreads,
                           0, logits_on_gpu.in(), static_cast<int>(width), rows_on_gpu.in(),
                           named ? wanted_on_gpu.in() : nullptr, parts_on_gpu.get(), arrivals.get(),
                           found_on_gpu.get(), static_cast<int>(m),
                           named ? nullptr : next_on_gpu.get());
            trial.count(kept_on_gpu.is(kept) && found_on_gpu.is(found) && parts_on_gpu.is(parts) &&
                        arrivals.is(zeros) &&
                        (named ? next_on_gpu.is(next) : same_rows(next_on_gpu.read(), next)));
        }
    }
}

// It tells of its sum in one case of four billion; this is one, and the next is none.
void check_read_memory(Trial& trial) {
    constexpr unsigned kTold = 0x9e3779b9u;
    constexpr size_t kPieces = 8 * kThreads;  // of 16 bytes: a CTA's
    for (const unsigned word : {kTold, kTold + 1}) {
        std::vector<unsigned> words(4 * kPieces, 0);
        words[4 * 777 + 2] = word;
        const DeviceArray<unsigned> pieces(trial, words);
        const DeviceArray<unsigned> sum(trial, filled<unsigned>(1));
        trial.launch()(trial.kernels("read_memory"), {1}, kThreads, 0,
                       reinterpret_cast<const unsigned char*>(pieces.get()),
                       static_cast<long long>(kPieces), sum.get());
        trial.count(sum.is(word == kTold ? std::vector<unsigned>{kTold} : filled<unsigned>(1)));
    }
}

void check_embed(Trial& trial) {
    Random random(23);
    constexpr unsigned kTokens = 11;
    constexpr size_t kHalf = 15;   // angles of a head
    constexpr size_t kTables = 2;  // rotary tables
    const std::vector<Row> rows = rows_at({0, 1, 40, 131071}, kTokens);
    const DeviceArray<Row> rows_on_gpu(trial, rows);
    std::vector<float> frequencies(kTables * kHalf);
    for (size_t i = 0; i < frequencies.size(); ++i) {
        frequencies[i] = 1.0f / static_cast<float>(1 + i * i);
    }
    std::vector<unsigned char> axes(kHalf);
    for (size_t i = 0; i < kHalf; ++i) axes[i] = static_cast<unsigned char>(i % 3);
    const DeviceArray<float> frequencies_on_gpu(trial, frequencies);
    const DeviceArray<unsigned char> axes_on_gpu(trial, axes);
    for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
        for (const uint32_t group_size : {32u, 64u, 128u}) {
            const size_t width = group_size + 37;
            const bool turned = group_size == 64;  // by three numbers
            const TrialMatrix table(trial, kTokens, width, bits, group_size,
                                    TrialMatrix::Codes::kRandom, false, random);
            std::vector<float> stream(rows.size() * width);
            std::vector<float> cosines(rows.size() * frequencies.size());
            std::vector<float> sines(cosines.size());
            for (size_t t = 0; t < rows.size(); ++t) {
                trial.reference.embedding(&table.packed, rows[t].token, stream.data() + t * width);
                for (size_t i = 0; i < frequencies.size(); ++i) {
                    const int number = turned ? rows[t].turns[axes[i % kHalf]] : rows[t].position;
                    const size_t at = t * frequencies.size() + i;
                    rope_angles(static_cast<size_t>(number), &frequencies[i], 1, &cosines[at],
                                &sines[at]);
                }
            }
            // Of few rows and of many.
            for (const unsigned threads : {1024u, kThreads}) {
                const DeviceArray<float> stream_on_gpu(trial, filled<float>(stream.size()));
                const DeviceArray<float> cosines_on_gpu(trial, filled<float>(cosines.size()));
                const DeviceArray<float> sines_on_gpu(trial, filled<float>(sines.size()));
                trial.launch()(trial.kernels("embed"), {static_cast<unsigned>(rows.size())},
                               threads, 0, rows_on_gpu.in(), table.matrix, frequencies_on_gpu.in(),
                               static_cast<int>(frequencies.size()),
                               turned ? axes_on_gpu.in() : nullptr, static_cast<int>(kHalf),
                               stream_on_gpu.get(), cosines_on_gpu.get(), sines_on_gpu.get());
                trial.count(stream_on_gpu.is(stream) && cosines_on_gpu.is(cosines) &&
                            sines_on_gpu.is(sines));
            }
        }
    }
}

void check_add_positions(Trial& trial) {
    Random random(24);
    const std::vector<Row> rows = rows_at({2, 0, 6}, 1);
    const DeviceArray<Row> rows_on_gpu(trial, rows);
    for (const size_t width : kLengths) {
        const std::vector<float> learned = random.reals(7 * width, 4.0f);
        const std::vector<float> stream = random.reals(rows.size() * width, 4.0f);
        std::vector<float> expected = stream;
        for (size_t i = 0; i < expected.size(); ++i) {
            const size_t position = static_cast<size_t>(rows[i / width].position);
            expected[i] = stream[i] + learned[position * width + i % width];
        }
        const DeviceArray<float> learned_on_gpu(trial, learned);
        const DeviceArray<float> out(trial, stream);
        trial.launch()(trial.kernels("add_positions"), {static_cast<unsigned>(rows.size())},
                       kThreads, 0, rows_on_gpu.in(), learned_on_gpu.in(), static_cast<int>(width),
                       out.get());
        trial.count(out.is(expected));
    }
}

}  // namespace

void add_row_checks(std::vector<KernelCheck>& checks) {
    checks.push_back({"embed", check_embed});
    checks.push_back({"add_positions", check_add_positions});
    for (const bool one : {true, false}) {
        const std::string word = one ? "_one" : "_many";
        checks.push_back({"norm" + word, [=](Trial& t) { check_norm(t, false, one); }});
        checks.push_back({"layer_norm" + word, [=](Trial& t) { check_norm(t, true, one); }});
        checks.push_back({"quantize" + word, [=](Trial& t) { check_quantize(t, one); }});
        checks.push_back({"activate" + word, [=](Trial& t) { check_activate(t, one); }});
    }
    checks.push_back({"norm_floats", [](Trial& t) { check_norm_floats(t, false); }});
    checks.push_back({"layer_norm_floats", [](Trial& t) { check_norm_floats(t, true); }});
    checks.push_back({"route", check_route});
    checks.push_back({"add_weighted", check_add_weighted});
    checks.push_back({"add", check_add});
    checks.push_back({"cap", check_cap});
    checks.push_back({"gather", check_gather});
    checks.push_back({"likeliest", check_likeliest});
    checks.push_back({"read_memory", check_read_memory});
}

}  // namespace awqe::cuda
