// Attention and what fills the cache for it, over both caches; see selftest.h.
#include <algorithm>
#include <cmath>

#include "native/cuda/selftest.h"
#include "native/cuda/selftest_trial.h"
#include "native/kernels/attention/attention_reference.h"

namespace awqe::cuda {
namespace {

using awqe_cuda::FreshRows;
using awqe_cuda::Heads;
using awqe_cuda::kAttentionChunk;
using awqe_cuda::Partials;

constexpr float kEpsilon = 1e-5f;
constexpr size_t kLayers = 2;  // of the cache; the second one is looked at
constexpr int kLayer = 1;

enum class HeadNorm { kNone, kRms, kLayerEach };  // one for all heads, one for each

// What a layer's attention is like.
struct Form {
    size_t heads;
    size_t kv_heads;
    size_t head_size;
    bool int8;
    size_t window = 0;
    float cap = 0.0f;
    bool sloped = false;
    HeadNorm norm = HeadNorm::kNone;
    float limit = 0.0f;
    bool turned = true;

    size_t group() const { return heads / kv_heads; }
    size_t width() const { return heads * head_size; }
    size_t kv_width() const { return kv_heads * head_size; }
    size_t begin(size_t position) const {
        return window == 0 || window > position ? 0 : position + 1 - window;
    }
};

// One sequence's layer, as the reference and as the GPU keep it.
struct TrialCache {
    TrialCache(const Trial& trial, const Form& form_, size_t positions_, Random& random)
        : form(form_),
          positions(positions_),
          shape(cache_shape(form.kv_heads, form.head_size, kLayers, form.int8)),
          halves{numbers(random), numbers(random)},
          scales{random.reals(positions * form.kv_heads, 0.015625f),
                 random.reals(positions * form.kv_heads, 0.015625f)},
          on_gpu(trial, image()) {}

    // Halves between 2^-3 and 2, of both signs: [kv_heads, positions, head_size]. As codes their
    // lower bytes.
    std::vector<uint16_t> numbers(Random& random) const {
        std::vector<uint16_t> all(positions * form.kv_width());
        for (uint16_t& number : all) {
            number = static_cast<uint16_t>(0x3000 + (random.bits() & 0x8fff));
        }
        return all;
    }
    int8_t code(int of_values, size_t i) const {
        const int byte = halves[of_values][i] & 0xff;
        return static_cast<int8_t>(byte == 128 ? 0 : byte < 128 ? byte : byte - 256);
    }

    // What the GPU holds: chunks of 64 positions with all layers; what belongs to nobody is filled.
    std::vector<unsigned char> image() const {
        const size_t chunks = (positions + kAttentionChunk - 1) / kAttentionChunk;
        std::vector<unsigned char> bytes(chunks * static_cast<size_t>(shape.chunk_bytes), kFill);
        const size_t d = form.head_size;
        for (size_t h = 0; h < form.kv_heads; ++h) {
            for (size_t t = 0; t < positions; ++t) {
                unsigned char* const base =
                    bytes.data() + t / kAttentionChunk * static_cast<size_t>(shape.chunk_bytes) +
                    kLayer * static_cast<size_t>(shape.layer_bytes);
                const size_t row = h * kAttentionChunk + t % kAttentionChunk;
                const size_t from = h * positions + t;
                for (const int which : {0, 1}) {
                    unsigned char* const to =
                        base + (which == 0 ? 0 : static_cast<size_t>(shape.values_offset));
                    if (!form.int8) {
                        std::memcpy(to + row * d * 2, &halves[which][from * d], d * 2);
                        continue;
                    }
                    for (size_t i = 0; i < d; ++i) {
                        to[row * d + i] = static_cast<unsigned char>(code(which, from * d + i));
                    }
                    std::memcpy(base + row * sizeof(float) +
                                    static_cast<size_t>(which == 0 ? shape.key_scales_offset
                                                                   : shape.value_scales_offset),
                                &scales[which][from], sizeof(float));
                }
            }
        }
        return bytes;
    }

    // A key's or a value's numbers at a position, in the place of what was there.
    void store(const KernelTable& table, int which, size_t head, size_t position, const float* x) {
        const size_t d = form.head_size;
        const size_t at = head * positions + position;
        if (!form.int8) {
            table.store_half(x, d, &halves[which][at * d]);
            return;
        }
        std::vector<int8_t> quantised(d);
        int32_t sum;
        const QuantizedRows row = {quantised.data(), &scales[which][at], &sum, d, 1};
        table.quantize_act(x, d, d, &row, 0);
        for (size_t i = 0; i < d; ++i) {
            halves[which][at * d + i] = static_cast<uint16_t>(static_cast<uint8_t>(quantised[i]));
        }
    }

    // `visit(CacheF16)` or `visit(CacheS8)` of one head.
    template <class Visit>
    void of_head(size_t head, const Visit& visit) {
        const size_t d = form.head_size;
        const size_t first = head * positions * d;
        if (!form.int8) {
            visit(CacheF16{&halves[0][first], &halves[1][first], d, positions});
            return;
        }
        for (const int which : {0, 1}) {
            codes[which].resize(halves[which].size());
            for (size_t i = 0; i < codes[which].size(); ++i) codes[which][i] = code(which, i);
        }
        visit(CacheS8{&codes[0][first], &codes[1][first], &scales[0][head * positions],
                      &scales[1][head * positions], d, positions});
    }

    const Form form;
    const size_t positions;
    const CacheShape shape;
    std::vector<uint16_t> halves[2];  // keys, values
    std::vector<int8_t> codes[2];
    std::vector<float> scales[2];
    const DeviceArray<unsigned char> on_gpu;
};

// Rows at some positions, each with a sequence of its own or all with one, and everything that
// their attention reads.
struct Scene {
    Scene(const Trial& trial, const Form& form_, const std::vector<size_t>& positions_,
          bool together, Random& random, float query_limit = 4.0f)
        : form(form_),
          positions(positions_),
          m(positions.size()),
          half(form.head_size / 2),
          slopes(form.heads),
          query(random.reals(m * form.width(), query_limit)),
          key(random.reals(m * form.kv_width(), 4.0f)),
          value(random.reals(m * form.kv_width(), 4.0f)),
          cosines(m * half),
          sines(m * half),
          norm_weights(random.reals(
              form.norm == HeadNorm::kLayerEach ? form.width() : form.head_size, 2.0f)),
          query_on_gpu(trial, query),
          key_on_gpu(trial, key),
          value_on_gpu(trial, value) {
        for (float& slope : slopes) slope = std::fabs(random.real(0.25f));
        std::vector<float> frequencies(half);
        for (size_t i = 0; i < half; ++i) frequencies[i] = 1.0f / static_cast<float>(1 + i * i);
        const size_t most = *std::max_element(positions.begin(), positions.end()) + 1;
        for (size_t t = 0; t < m; ++t) {
            rope_angles(positions[t], frequencies.data(), half, &cosines[t * half],
                        &sines[t * half]);
            if (!together || t == 0) {
                caches.push_back(std::make_unique<TrialCache>(
                    trial, form, together ? most : positions[t] + 1, random));
            }
            Row row = {};
            row.position = static_cast<int>(positions[t]);
            row.cache = caches.back()->on_gpu.get();
            rows.push_back(row);
        }
        cosines_on_gpu = std::make_unique<DeviceArray<float>>(trial, cosines);
        sines_on_gpu = std::make_unique<DeviceArray<float>>(trial, sines);
        slopes_on_gpu = std::make_unique<DeviceArray<float>>(trial, slopes);
        norms_on_gpu = std::make_unique<DeviceArray<float>>(trial, norm_weights);
        rows_on_gpu = std::make_unique<DeviceArray<Row>>(trial, rows);
    }

    TrialCache& cache(size_t row) { return *caches[caches.size() == 1 ? 0 : row]; }

    Heads heads() const {
        Heads heads = {};
        heads.heads = static_cast<int>(form.heads);
        heads.kv_heads = static_cast<int>(form.kv_heads);
        heads.head_size = static_cast<int>(form.head_size);
        heads.window = static_cast<int>(form.window);
        if (form.norm != HeadNorm::kNone) {
            const bool each = form.norm == HeadNorm::kLayerEach;
            heads.query_norm = {norms_on_gpu->get(), nullptr, kEpsilon, each};
            heads.key_norm = heads.query_norm;
            heads.norm_stride = each ? heads.head_size : 0;
        }
        heads.limit = form.limit;
        heads.score_cap = form.cap;
        heads.slopes = form.sloped ? slopes_on_gpu->get() : nullptr;
        heads.angle_stride = form.turned ? static_cast<int>(half) : 0;
        return heads;
    }

    // Norm, limit and rotation of one head's query or key.
    void turn(const KernelTable& table, float* x, size_t row, size_t head) const {
        const size_t d = form.head_size;
        if (form.norm == HeadNorm::kRms) table.rms_norm(x, norm_weights.data(), d, kEpsilon, x);
        if (form.norm == HeadNorm::kLayerEach) {
            table.layer_norm(x, &norm_weights[head * d], nullptr, d, kEpsilon, x);
        }
        limit(x);
        if (form.turned) table.rope(x, 1, d, &cosines[row * half], &sines[row * half]);
    }
    void limit(float* x) const {
        for (size_t i = 0; i < form.head_size && form.limit != 0.0f; ++i) {
            x[i] = std::clamp(x[i], -form.limit, form.limit);
        }
    }

    // What `prepare` does, on this side: queries in place, keys and values into the caches.
    void prepare(const KernelTable& table) {
        const size_t d = form.head_size;
        for (size_t t = 0; t < m; ++t) {
            for (size_t h = 0; h < form.heads; ++h) {
                turn(table, &query[(t * form.heads + h) * d], t, h);
            }
            for (size_t h = 0; h < form.kv_heads; ++h) {
                const size_t at = (t * form.kv_heads + h) * d;
                turn(table, &key[at], t, h);
                limit(&value[at]);
                cache(t).store(table, 0, h, positions[t], &key[at]);
                cache(t).store(table, 1, h, positions[t], &value[at]);
            }
        }
    }

    bool caches_hold() const {
        return std::all_of(caches.begin(), caches.end(),
                           [](const auto& each) { return each->on_gpu.is(each->image()); });
    }

    // float [m, heads * head_size]: what attention gives.
    std::vector<float> attended(const KernelTable& table) {
        std::vector<float> out(query.size());
        const size_t d = form.head_size;
        for (size_t t = 0; t < m; ++t) {
            for (size_t h = 0; h < form.kv_heads; ++h) {
                const size_t first = h * form.group();
                const ScoreChange change = {form.cap, form.sloped ? &slopes[first] : nullptr};
                const size_t at = t * form.width() + first * d;
                cache(t).of_head(h, [&](const auto& keys) {
                    attend_with(table, keys, &query[at], form.begin(positions[t]), positions[t] + 1,
                                change, &out[at]);
                });
            }
        }
        return out;
    }
    void attend_with(const KernelTable& table, const CacheF16& keys, const float* queries,
                     size_t begin, size_t end, const ScoreChange& change, float* out) const {
        table.attention_f16(queries, form.group(), &keys, form.head_size, begin, end, &change, out);
    }
    void attend_with(const KernelTable& table, const CacheS8& keys, const float* queries,
                     size_t begin, size_t end, const ScoreChange& change, float* out) const {
        table.attention_s8(queries, form.group(), &keys, form.head_size, begin, end, &change, out);
    }

    // Chunks of positions that a row sees.
    size_t first_chunk(size_t t) const { return form.begin(positions[t]) / kAttentionChunk; }
    size_t chunks(size_t t) const { return positions[t] / kAttentionChunk + 1 - first_chunk(t); }
    size_t most_chunks() const {
        size_t most = 0;
        for (size_t t = 0; t < m; ++t) most = std::max(most, chunks(t));
        return most;
    }

    const Form form;
    const std::vector<size_t> positions;
    const size_t m;
    const size_t half;
    std::vector<float> slopes;
    std::vector<float> query;
    std::vector<float> key;
    std::vector<float> value;
    std::vector<float> cosines;
    std::vector<float> sines;
    const std::vector<float> norm_weights;
    std::vector<std::unique_ptr<TrialCache>> caches;
    std::vector<Row> rows;
    const DeviceArray<float> query_on_gpu;
    const DeviceArray<float> key_on_gpu;
    const DeviceArray<float> value_on_gpu;
    std::unique_ptr<DeviceArray<float>> cosines_on_gpu;
    std::unique_ptr<DeviceArray<float>> sines_on_gpu;
    std::unique_ptr<DeviceArray<float>> slopes_on_gpu;
    std::unique_ptr<DeviceArray<float>> norms_on_gpu;
    std::unique_ptr<DeviceArray<Row>> rows_on_gpu;
};

// What chunks say about queries, on both sides. Places that no row sees stay as they are.
struct TrialPartials {
    TrialPartials(const Trial& trial, size_t m, const Form& form_, size_t chunks_)
        : form(form_),
          chunks(chunks_),
          largest(filled<float>(m * form.heads * chunks)),
          weight(largest),
          values(filled<float>(largest.size() * form.head_size)),
          largest_on_gpu(trial, largest),
          weight_on_gpu(trial, weight),
          values_on_gpu(trial, values) {}

    Partials on_gpu() const {
        return {largest_on_gpu.get(), weight_on_gpu.get(), values_on_gpu.get(),
                static_cast<int>(chunks)};
    }
    bool hold() const {
        return largest_on_gpu.is(largest) && weight_on_gpu.is(weight) && values_on_gpu.is(values);
    }
    void set(size_t row, size_t head, size_t chunk, const Partial& partial) {
        const size_t at = (row * form.heads + head) * chunks + chunk;
        largest[at] = partial.largest;
        weight[at] = partial.weight;
        std::copy_n(partial.values, form.head_size, &values[at * form.head_size]);
    }

    const Form form;
    const size_t chunks;
    std::vector<float> largest;
    std::vector<float> weight;
    std::vector<float> values;
    const DeviceArray<float> largest_on_gpu;
    const DeviceArray<float> weight_on_gpu;
    const DeviceArray<float> values_on_gpu;
};

void launch_chunks(Trial& trial, const std::string& kernel, const Scene& scene, size_t n,
                   const TrialPartials& partials, unsigned* arrivals, const Activations& out,
                   const FreshRows& fresh) {
    const Form& form = scene.form;
    trial.launch()(trial.kernels(kernel),
                   {static_cast<unsigned>(partials.chunks), static_cast<unsigned>(form.heads / n),
                    static_cast<unsigned>(scene.m)},
                   kThreads, chunk_shared(form.head_size, n), scene.rows_on_gpu->in(),
                   scene.heads(), scene.query_on_gpu.in(), scene.caches[0]->shape, kLayer,
                   partials.on_gpu(), arrivals, out, static_cast<int>(n), fresh);
}

// What every chunk says about every query.
void check_chunks(Trial& trial, const std::string& kernel, const Form& form,
                  const std::vector<size_t>& positions, Random& random) {
    Scene scene(trial, form, positions, true, random);
    TrialPartials partials(trial, scene.m, form, scene.most_chunks() + 1);
    const DeviceRows out(trial, scene.m, form.width(), 32);
    launch_chunks(trial, kernel, scene, form.group(), partials, nullptr, out.rows, {});
    for (size_t t = 0; t < scene.m; ++t) {
        for (size_t chunk = 0; chunk < scene.chunks(t); ++chunk) {
            const size_t number = scene.first_chunk(t) + chunk;
            const size_t begin = std::max(form.begin(positions[t]), number * kAttentionChunk);
            const size_t end = std::min(positions[t] + 1, (number + 1) * kAttentionChunk);
            for (size_t h = 0; h < form.heads; ++h) {
                scene.cache(t).of_head(h / form.group(), [&](const auto& keys) {
                    Partial partial;
                    attend_chunk(&scene.query[t * form.width() + h * form.head_size], keys,
                                 form.head_size, begin, end, positions[t],
                                 {form.cap, scene.slopes[h], form.sloped}, &partial);
                    partials.set(t, h, chunk, partial);
                });
            }
        }
    }
    trial.count(partials.hold());
}

// Rows of different sequences as the products gave them: norms, angles and the cache too; the last
// chunk merges and quantises. `n` query heads of a key-value head go together.
void check_fresh_rows(Trial& trial, const std::string& kernel, const Form& form, size_t n,
                      const std::vector<size_t>& positions, Random& random) {
    Scene scene(trial, form, positions, false, random);
    const TrialPartials partials(trial, scene.m, form, scene.most_chunks());
    const std::vector<unsigned> none(scene.m * form.heads, 0);
    const DeviceArray<unsigned> arrivals(trial, none);
    const DeviceRows out(trial, scene.m, form.width(), 32);
    launch_chunks(trial, kernel, scene, n, partials, arrivals.get(), out.rows,
                  {scene.key_on_gpu.get(), scene.value_on_gpu.get(), scene.cosines_on_gpu->get(),
                   scene.sines_on_gpu->get()});
    scene.prepare(trial.reference);
    const HostRows expected(trial.reference, scene.attended(trial.reference), scene.m, form.width(),
                            32);
    // Groups of padding are not written.
    std::vector<signed char> codes = expected.device_codes();
    std::vector<int2> side = expected.device_side();
    const std::vector<signed char> is = out.codes.read();
    for (size_t t = 0; t < scene.m; ++t) {
        for (size_t i = form.width(); i < expected.code_stride; ++i) {
            codes[scene.m == 1 ? place_in_units(i) : t * expected.code_stride + i] =
                static_cast<signed char>(kFill);
        }
        const size_t groups = form.width() / 32;
        const std::vector<int2> rest = filled<int2>(expected.group_stride - groups);
        std::copy(rest.begin(), rest.end(),
                  side.begin() + static_cast<std::ptrdiff_t>(t * expected.group_stride + groups));
    }
    trial.count(out.codes.is(codes) && out.side.is(side) && arrivals.is(none) &&
                scene.caches_hold());
}

void check_attention(Trial& trial, const std::string& kernel, const Form& shape, bool one) {
    Random random(15);
    Form form = shape;
    const size_t n = form.group();
    const auto positions = [&](std::initializer_list<size_t> some) {
        return one ? std::vector<size_t>{*some.begin()} : std::vector<size_t>(some);
    };
    check_chunks(trial, kernel, form, positions({0, 1}), random);
    check_chunks(trial, kernel, form, positions({130, 131, 132}), random);
    form.window = 40;
    check_chunks(trial, kernel, form, positions({150, 20}), random);
    form.window = 0;
    check_fresh_rows(trial, kernel, form, n, positions({64, 3}), random);
    // As where the GPU would be half empty.
    if (n % 2 == 0 && n / 2 * form.head_size % 32 == 0) {
        check_fresh_rows(trial, kernel, form, n / 2, positions({64, 3}), random);
    }
    form.norm = HeadNorm::kRms;
    check_fresh_rows(trial, kernel, form, n, positions({100, 63, 0}), random);
    form.norm = HeadNorm::kLayerEach;
    form.limit = 1.5f;
    form.turned = false;
    check_fresh_rows(trial, kernel, form, n, positions({70, 130}), random);
}

enum class Merged { kOne, kMany, kFloats };

void check_merge(Trial& trial, Merged how) {
    Random random(16);
    for (const Form& form : {Form{4, 2, 40, false}, Form{2, 2, 128, false, 100}}) {
        for (const size_t last : {size_t{5}, size_t{300}}) {
            const std::vector<size_t> positions =
                how == Merged::kOne ? std::vector<size_t>{last} : std::vector<size_t>{last, 64};
            const Scene scene(trial, form, positions, true, random);
            const size_t most = scene.most_chunks();
            std::vector<float> expected(scene.m * form.width());
            TrialPartials made(trial, 0, form, most + 1);
            made.largest = filled<float>(scene.m * form.heads * made.chunks);
            made.weight = made.largest;
            made.values = filled<float>(made.largest.size() * form.head_size);
            for (size_t t = 0; t < scene.m; ++t) {
                for (size_t h = 0; h < form.heads; ++h) {
                    Partial all = {};
                    for (size_t chunk = 0; chunk < scene.chunks(t); ++chunk) {
                        Partial partial = {};
                        partial.largest = random.real(8.0f);
                        partial.weight = 1.0f + std::fabs(random.real(60.0f));
                        for (size_t i = 0; i < form.head_size; ++i) {
                            partial.values[i] = random.real(50.0f);
                        }
                        made.set(t, h, chunk, partial);
                        if (chunk == 0) {
                            all = partial;
                        } else {
                            merge(partial, form.head_size, &all);
                        }
                    }
                    for (size_t i = 0; i < form.head_size; ++i) {
                        expected[t * form.width() + h * form.head_size + i] =
                            all.values[i] / all.weight;
                    }
                }
            }
            const DeviceArray<float> largest(trial, made.largest);
            const DeviceArray<float> weight(trial, made.weight);
            const DeviceArray<float> values(trial, made.values);
            const Partials partials = {largest.get(), weight.get(), values.get(),
                                       static_cast<int>(made.chunks)};
            const DeviceRows codes(trial, scene.m, form.width(), 64);
            const DeviceArray<float> floats(trial, filled<float>(expected.size()));
            const size_t touched = std::min<size_t>(form.heads, kChunk / form.head_size + 2);
            const size_t shared = touched * 3 * most * sizeof(float);
            const Grid grid = {static_cast<unsigned>(codes.rows.code_stride / kChunk),
                               static_cast<unsigned>(scene.m)};
            if (how == Merged::kFloats) {
                trial.launch()(trial.kernels("attention_merge_floats"), grid,
                               static_cast<unsigned>(kChunk), shared, scene.rows_on_gpu->in(),
                               scene.heads(), partials, floats.get(),
                               static_cast<int>(form.width()));
                trial.count(floats.is(expected));
                continue;
            }
            trial.launch()(
                trial.kernels(how == Merged::kOne ? "attention_merge_one" : "attention_merge_many"),
                grid, static_cast<unsigned>(kChunk), shared, scene.rows_on_gpu->in(), scene.heads(),
                partials, codes.rows);
            trial.count(codes.is(HostRows(trial.reference, expected, scene.m, form.width(), 64)));
        }
    }
}

void check_prepare(Trial& trial) {
    Random random(17);
    for (const bool int8 : {false, true}) {
        for (const HeadNorm norm : {HeadNorm::kNone, HeadNorm::kRms, HeadNorm::kLayerEach}) {
            for (const size_t head_size : {size_t{30}, size_t{64}, size_t{256}}) {
                Form form = {6, 2, head_size, int8};
                form.norm = norm;
                form.limit = norm == HeadNorm::kRms ? 0.0f : 1.5f;
                form.turned = head_size != 64 || norm != HeadNorm::kNone;
                Scene scene(trial, form, {62, 63, 64}, true, random);
                trial.launch()(
                    trial.kernels("prepare"),
                    {divided(form.heads + 2 * form.kv_heads, 4), static_cast<unsigned>(scene.m)},
                    128, 0, scene.rows_on_gpu->in(), scene.heads(), scene.query_on_gpu.get(),
                    scene.key_on_gpu.in(), scene.value_on_gpu.in(), scene.cosines_on_gpu->in(),
                    scene.sines_on_gpu->in(), scene.caches[0]->shape, kLayer);
                scene.prepare(trial.reference);
                trial.count(scene.query_on_gpu.is(scene.query) && scene.caches_hold());
            }
        }
    }
}

// Prompts of 18 rows: rows of one sequence behind what it has already.
std::vector<size_t> prompt_from(size_t first) {
    std::vector<size_t> positions(18);
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = first + i;
    return positions;
}

// Forms for a kernel of heads up to `most` numbers.
std::vector<Form> prompt_forms(size_t most, bool changed) {
    std::vector<Form> forms = {
        {4, 2, most, false}, {4, 1, most - 24, true}, {2, 2, most, true, 30}};
    for (Form& form : forms) {
        if (!changed) continue;
        form.cap = form.int8 ? 1.5f : 0.0f;
        form.sloped = form.kv_heads != 1;
    }
    return forms;
}

void check_prompt(Trial& trial, const std::string& kernel, size_t most, bool changed) {
    Random random(18);
    for (const Form& form : prompt_forms(most, changed)) {
        for (const size_t first : {size_t{0}, size_t{55}}) {
            Scene scene(trial, form, prompt_from(first), true, random);
            const DeviceArray<float> out(trial, filled<float>(scene.query.size()));
            trial.launch()(
                trial.kernels(kernel),
                {divided(scene.m * form.group(), 64), static_cast<unsigned>(form.kv_heads)},
                kThreads, prompt_shared(form.head_size, most), scene.rows_on_gpu->in(),
                static_cast<int>(scene.m), scene.heads(), scene.query_on_gpu.in(),
                scene.caches[0]->shape, kLayer, out.get());
            trial.count(out.is(scene.attended(trial.reference)));
        }
    }
}

// Root mean square of the difference, relative: native/ARITHMETIC.md, section 7. A score's error
// grows with the score, so queries are such as give ordinary ones, of about one.
constexpr double kTensorBound = 0.0004;
constexpr float kTensorQueries = 2.0f;

void check_tensor(Trial& trial, const std::string& kernel, size_t most) {
    Random random(18);
    std::vector<Form> forms = prompt_forms(most, false);
    const std::vector<Form> changed = prompt_forms(most, true);
    forms.insert(forms.end(), changed.begin(), changed.end());
    for (const Form& form : forms) {
        Scene scene(trial, form, prompt_from(55), true, random, kTensorQueries);
        const DeviceArray<float> out(trial, filled<float>(scene.query.size()));
        trial.launch()(trial.kernels(kernel),
                       {static_cast<unsigned>(form.kv_heads), divided(scene.m * form.group(), 64)},
                       128, tensor_shared(most), scene.rows_on_gpu->in(), static_cast<int>(scene.m),
                       scene.heads(), scene.query_on_gpu.in(), scene.caches[0]->shape, kLayer,
                       out.get());
        const std::vector<float> expected = scene.attended(trial.reference);
        const std::vector<float> is = out.read();
        double square = 0;
        double difference = 0;
        for (size_t i = 0; i < is.size(); ++i) {
            square += double{expected[i]} * double{expected[i]};
            difference +=
                (double{is[i]} - double{expected[i]}) * (double{is[i]} - double{expected[i]});
        }
        // Not a number is no bound kept; and nothing is written behind the outputs.
        trial.count(difference <= kTensorBound * kTensorBound * square && out.is(is));
    }
}

}  // namespace

void add_attention_checks(std::vector<KernelCheck>& checks) {
    checks.push_back({"prepare", check_prepare});
    for (const bool one : {true, false}) {
        const std::string word = one ? "attention_one_" : "attention_many_";
        const auto add = [&](const std::string& name, const Form& form) {
            const std::string kernel = word + name;
            checks.push_back(
                {kernel, [=](Trial& trial) { check_attention(trial, kernel, form, one); }});
        };
        add("f16_d64", {4, 2, 64, false});
        add("f16_d128", {2, 1, 128, false});
        add("f16_any", {4, 1, 40, false});
        add("s8_any", {8, 2, 48, true});
        add("f16_any_changed", {4, 2, 64, false, 0, 1.5f, true});
        add("s8_any_changed", {2, 2, 32, true, 0, 1.5f, true});
    }
    checks.push_back({"attention_merge_one", [](Trial& t) { check_merge(t, Merged::kOne); }});
    checks.push_back({"attention_merge_many", [](Trial& t) { check_merge(t, Merged::kMany); }});
    checks.push_back({"attention_merge_floats", [](Trial& t) { check_merge(t, Merged::kFloats); }});
    for (const size_t most : {size_t{64}, size_t{128}}) {
        const std::string word = std::to_string(most);
        for (const bool changed : {false, true}) {
            const std::string kernel = "attention_prompt_d" + word + (changed ? "_changed" : "");
            checks.push_back(
                {kernel, [=](Trial& trial) { check_prompt(trial, kernel, most, changed); }});
        }
        const std::string kernel = "attention_tensor_d" + word;
        checks.push_back({kernel, [=](Trial& trial) { check_tensor(trial, kernel, most); }});
    }
}

}  // namespace awqe::cuda
