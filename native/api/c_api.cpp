// Every function of awq_edge.h but those with a callback, which are in callbacks.c: clears what it
// will fill in, then calls into the runtime under guard(), which lets no exception through. (The
// functions cannot be called noexcept here: C knows no such word for their declarations.) Holds no
// logic.
#include <cinttypes>
#include <cstdlib>
#include <memory>

#include "awq_edge.h"
#include "native/api/boundary.h"
#include "native/api/objects.h"
#include "native/failure/unreadable_file.h"
#include "native/kernels/cpu_features.h"
#include "native/kernels/dispatch.h"
#include "native/runtime/bandwidth.h"
#include "native/runtime/cpus.h"
#include "native/runtime/gpu_backend.h"
#include "native/runtime/picture_rows.h"
#include "native/runtime/thread_choice.h"
#include "native/runtime/vision_encoding.h"

namespace awqe {
namespace {

template <class Pointer>
void clear(Pointer* out) {
    if (out != nullptr) *out = {};
}

// Everything but the size that the caller set.
template <class Structure>
void clear_sized(Structure* out) {
    if (out == nullptr || out->struct_size != sizeof(Structure)) return;
    *out = {};
    out->struct_size = sizeof(Structure);
}

uint32_t device_of(const awqe_session_options* options) {
    return options == nullptr ? uint32_t{AWQE_DEVICE_CPU} : options->device;
}

void fill(awqe_model_info& info, const Model& model) {
    const Architecture& a = model.architecture();
    info.layers = a.layers;
    info.hidden_size = a.hidden_size;
    info.vocabulary_size = a.vocabulary_size;
    info.context_length = a.context_length;
    info.heads = a.heads;
    info.kv_heads = a.kv_heads;
    info.head_size = a.head_size;
    info.feed_forward_size = a.feed_forward_size;
    info.parameters = model.parameters();
    info.file_bytes = model.file().size();
    info.decode_bytes = model.decode_bytes();
}

void fill(awqe_vision_info& info, const Model& model) {
    const VisionModel& vision = need_vision(model);
    const VisionArchitecture& a = vision.architecture;
    info.layers = a.layers;
    info.hidden_size = a.hidden_size;
    info.heads = a.heads;
    info.head_size = a.head_size;
    info.feed_forward_size = a.feed_forward_size;
    info.image_size = a.image_size;
    info.patch_size = a.patch_size;
    info.tokens = a.rotary ? 0 : a.tokens();
    info.step = a.rotary ? a.patch_size * a.regroup : 0;
    info.embedding_size = vision.embedding_size;
    for (const Tensor& tensor : model.file().tensors()) {
        if (is_vision_tensor(tensor)) info.weight_bytes += tensor.bytes;
    }
    info.newline = vision.newline;
    info.bidirectional = a.bidirectional;
    if (model.cross() != nullptr) {
        info.session_bytes = PictureRows::bytes(*model.cross(), a.tokens());
    }
}

void require_vocabulary(size_t count, size_t vocabulary) {
    if (count == vocabulary) return;
    fail(AWQE_INVALID_ARGUMENT, "count is %zu, but the vocabulary has %zu tokens", count,
         vocabulary);
}

awqe_value_type type_in_c(ValueType type) {
    switch (type) {
        case ValueType::kUint8:
        case ValueType::kUint16:
        case ValueType::kUint32:
        case ValueType::kUint64:
            return AWQE_VALUE_UNSIGNED;
        case ValueType::kInt8:
        case ValueType::kInt16:
        case ValueType::kInt32:
        case ValueType::kInt64:
            return AWQE_VALUE_SIGNED;
        case ValueType::kFloat32:
        case ValueType::kFloat64:
            return AWQE_VALUE_REAL;
        case ValueType::kBool:
            return AWQE_VALUE_BOOLEAN;
        case ValueType::kString:
            return AWQE_VALUE_STRING;
        case ValueType::kArray:
            return AWQE_VALUE_ARRAY;
    }
    return AWQE_VALUE_UNSIGNED;
}

void fill(awqe_metadata& out, const Value& value) {
    out.type = type_in_c(value.type);
    out.element_type = type_in_c(value.element_type);
    out.count = value.count;
    switch (out.type) {
        case AWQE_VALUE_UNSIGNED:
        case AWQE_VALUE_BOOLEAN:
            out.unsigned_value = value.as_unsigned();
            break;
        case AWQE_VALUE_SIGNED:
            out.signed_value = value.as_signed();
            break;
        case AWQE_VALUE_REAL:
            out.real_value = value.as_real();
            break;
        case AWQE_VALUE_STRING:
            out.string_value = value.as_string().data();
            break;
        case AWQE_VALUE_ARRAY:
            out.element_bytes = static_cast<uint32_t>(value.element_bytes());
            out.array_value = value.data;
            out.array_bytes = value.bytes;
            break;
    }
}

void fill(awqe_tensor& out, const Tensor& tensor) {
    out.bits = tensor.packed ? tensor.matrix.bits : 32;
    out.group_size = tensor.packed ? tensor.matrix.group_size : 0;
    out.rows = tensor.packed ? tensor.matrix.rows : 1;
    out.columns = tensor.packed ? tensor.matrix.columns : tensor.elements;
    out.offset = tensor.offset;
    out.bytes = tensor.bytes;
    out.name = tensor.name.c_str();
}

// items[index]
template <class Items>
const auto& at(const Items& items, size_t index, const char* kind) {
    if (index >= items.size()) {
        fail(AWQE_INVALID_ARGUMENT, "index is %zu, the model has %zu %s", index, items.size(),
             kind);
    }
    return items[index];
}

}  // namespace
}  // namespace awqe

uint32_t awqe_abi_version() { return AWQE_ABI_VERSION; }

const char* awqe_version() { return AWQE_VERSION; }

awqe_status awqe_exit_on_unreadable_file(const char* program, int exit_status, awqe_error* error) {
    return awqe::guard(error, [&] {
        awqe::exit_on_unreadable_file(&awqe::required(program, "program"), exit_status);
    });
}

awqe_status awqe_model_open(const char* path, awqe_model** model, awqe_error* error) {
    awqe::clear(model);
    return awqe::guard(error, [&] {
        awqe::required(model, "model");
        *model =
            new awqe_model{std::make_shared<const awqe::OpenModel>(&awqe::required(path, "path"))};
    });
}

void awqe_model_close(awqe_model* model) { delete model; }

awqe_status awqe_model_info_get(const awqe_model* model, awqe_model_info* info, awqe_error* error) {
    awqe::clear_sized(info);
    return awqe::guard(error, [&] {
        awqe::fill(awqe::sized(info, "info"), awqe::required(model, "model").shared->model());
    });
}

size_t awqe_model_metadata_count(const awqe_model* model) {
    return model == nullptr ? 0 : model->shared->model().file().entries().size();
}

awqe_status awqe_model_metadata_at(const awqe_model* model, size_t index, awqe_metadata* entry,
                                   awqe_error* error) {
    awqe::clear_sized(entry);
    return awqe::guard(error, [&] {
        awqe::sized(entry, "entry");
        const awqe::Entry& found = awqe::at(
            awqe::required(model, "model").shared->model().file().entries(), index, "entries");
        awqe::fill(*entry, found.value);
        entry->key = found.key.c_str();
    });
}

size_t awqe_model_tensor_count(const awqe_model* model) {
    return model == nullptr ? 0 : model->shared->model().file().tensors().size();
}

awqe_status awqe_model_tensor_at(const awqe_model* model, size_t index, awqe_tensor* tensor,
                                 awqe_error* error) {
    awqe::clear_sized(tensor);
    return awqe::guard(error, [&] {
        awqe::sized(tensor, "tensor");
        awqe::fill(*tensor,
                   awqe::at(awqe::required(model, "model").shared->model().file().tensors(), index,
                            "tensors"));
    });
}

awqe_status awqe_session_memory(const awqe_model* model, const awqe_session_options* options,
                                awqe_memory* memory, awqe_error* error) {
    awqe::clear_sized(memory);
    return awqe::guard(error, [&] {
        awqe::sized(memory, "memory");
        if (options != nullptr) awqe::sized(options, "options");
        const awqe::OpenModel& m = *awqe::required(model, "model").shared;
        const awqe::SequencePlan plan = awqe::session_plan(m.model(), options);
        const awqe::Backend& backend =
            m.backend(awqe::device_of(options), std::getenv("AWQ_EDGE_KERNELS"), plan);
        memory->weight_bytes = m.model().file().size();
        memory->cache_bytes = backend.cache_bytes(plan);
        if (m.model().cross() != nullptr) {
            memory->cache_bytes += awqe::PictureRows::bytes(
                *m.model().cross(), m.model().vision()->architecture.tokens());
        }
        memory->scratch_bytes =
            backend.scratch_bytes(plan) + awqe::Session::own_bytes(m.model(), plan);
    });
}

awqe_status awqe_session_gpu_memory(const awqe_model* model, const awqe_session_options* options,
                                    awqe_gpu_memory* memory, awqe_error* error) {
    awqe::clear_sized(memory);
    return awqe::guard(error, [&] {
        awqe::sized(memory, "memory");
        if (options != nullptr) awqe::sized(options, "options");
        const awqe::Model& m = awqe::required(model, "model").shared->model();
        awqe::describe_gpu_memory(m, awqe::session_plan(m, options), memory);
    });
}

awqe_status awqe_session_open(const awqe_model* model, const awqe_session_options* options,
                              awqe_session** session, awqe_error* error) {
    awqe::clear(session);
    return awqe::guard(error, [&] {
        awqe::required(session, "session");
        if (options != nullptr) awqe::sized(options, "options");
        const std::shared_ptr<const awqe::OpenModel>& m = awqe::required(model, "model").shared;
        const awqe::SequencePlan plan = awqe::session_plan(m->model(), options);
        *session = new awqe_session{
            awqe::Session(m, plan, awqe::device_of(options), std::getenv("AWQ_EDGE_KERNELS"))};
    });
}

void awqe_session_close(awqe_session* session) { delete session; }

const char* awqe_session_kernels(const awqe_session* session) {
    return session == nullptr ? "" : session->session.backend().name();
}

uint32_t awqe_session_threads(const awqe_session* session, bool prefill) {
    return session == nullptr ? 0 : session->session.threads(prefill);
}

uint32_t awqe_session_position(const awqe_session* session) {
    return session == nullptr ? 0 : static_cast<uint32_t>(session->session.position());
}

uint32_t awqe_session_earliest(const awqe_session* session) {
    return session == nullptr ? 0 : static_cast<uint32_t>(session->session.earliest());
}

awqe_status awqe_session_tokens(const awqe_session* session, uint32_t* tokens, size_t count,
                                awqe_error* error) {
    return awqe::guard(
        error, [&] { awqe::Used(session)->copy_tokens(&awqe::required(tokens, "tokens"), count); });
}

awqe_status awqe_session_reusable(const awqe_session* session, const uint32_t* tokens, size_t count,
                                  uint32_t* reusable, awqe_error* error) {
    awqe::clear(reusable);
    return awqe::guard(error, [&] {
        awqe::required(reusable, "reusable");
        *reusable = static_cast<uint32_t>(
            awqe::Used(session)->reusable(&awqe::required(tokens, "tokens"), count));
    });
}

awqe_status awqe_session_truncate(awqe_session* session, uint32_t position, awqe_error* error) {
    return awqe::guard(error, [&] { awqe::Used(session)->truncate(position); });
}

awqe_status awqe_session_look_at(awqe_session* session, const float* rows, size_t count,
                                 awqe_error* error) {
    return awqe::guard(error, [&] { awqe::Used(session)->look_at(rows, count); });
}

awqe_status awqe_session_saved_bytes(const awqe_session* session, uint32_t begin, uint32_t end,
                                     uint64_t* bytes, awqe_error* error) {
    awqe::clear(bytes);
    return awqe::guard(error, [&] {
        awqe::required(bytes, "bytes");
        *bytes = awqe::Used(session)->saved_bytes(begin, end);
    });
}

awqe_status awqe_session_save(const awqe_session* session, uint32_t begin, uint32_t end,
                              void* bytes, size_t size, awqe_error* error) {
    return awqe::guard(error, [&] {
        const awqe::Used used(session);
        const size_t needed = used->saved_bytes(begin, end);
        if (size != needed) {
            awqe::fail(AWQE_INVALID_ARGUMENT, "size is %zu, the context needs %zu bytes", size,
                       needed);
        }
        if (bytes == nullptr) awqe::fail(AWQE_INVALID_ARGUMENT, "bytes is NULL");
        used->save(begin, end, static_cast<uint8_t*>(bytes));
    });
}

awqe_status awqe_session_restore(awqe_session* session, const void* bytes, size_t size,
                                 awqe_error* error) {
    return awqe::guard(error, [&] {
        const awqe::Used used(session);
        if (bytes == nullptr) awqe::fail(AWQE_INVALID_ARGUMENT, "bytes is NULL");
        used->restore(static_cast<const uint8_t*>(bytes), size);
    });
}

awqe_status awqe_vision_info_get(const awqe_model* model, awqe_vision_info* info,
                                 awqe_error* error) {
    awqe::clear_sized(info);
    return awqe::guard(error, [&] {
        awqe::sized(info, "info");
        awqe::fill(*info, awqe::required(model, "model").shared->model());
    });
}

awqe_status awqe_vision_memory(const awqe_model* model, uint32_t height, uint32_t width,
                               uint32_t threads, uint64_t* scratch_bytes, awqe_error* error) {
    awqe::clear(scratch_bytes);
    return awqe::guard(error, [&] {
        awqe::required(scratch_bytes, "scratch_bytes");
        const awqe::VisionModel& vision =
            awqe::need_vision(awqe::required(model, "model").shared->model());
        *scratch_bytes = awqe::encoding_bytes(vision, awqe::need_shape(vision, height, width),
                                              awqe::thread_count(threads, "threads"));
    });
}

awqe_status awqe_sampler_open(const awqe_sampling* sampling, awqe_sampler** sampler,
                              awqe_error* error) {
    awqe::clear(sampler);
    return awqe::guard(error, [&] {
        awqe::required(sampler, "sampler");
        *sampler = new awqe_sampler{awqe::Sampler(awqe::sized(sampling, "sampling"))};
    });
}

awqe_status awqe_sampler_seek(awqe_sampler* sampler, uint64_t draw, awqe_error* error) {
    return awqe::guard(error, [&] { awqe::required(sampler, "sampler").sampler.seek(draw); });
}

void awqe_sampler_close(awqe_sampler* sampler) { delete sampler; }

awqe_status awqe_session_sample(const awqe_session* session, awqe_sampler* sampler, uint32_t* token,
                                awqe_error* error) {
    awqe::clear(token);
    return awqe::guard(error, [&] {
        awqe::required(token, "token");
        *token = awqe::Used(session)->sample(awqe::required(sampler, "sampler").sampler);
    });
}

awqe_status awqe_session_sample_adjusted(const awqe_session* session, awqe_sampler* sampler,
                                         const float* added, size_t count, uint32_t* token,
                                         awqe_error* error) {
    awqe::clear(token);
    return awqe::guard(error, [&] {
        awqe::required(token, "token");
        const awqe::Used used(session);
        awqe::require_vocabulary(count, used->vocabulary());
        *token = used->sample(awqe::required(sampler, "sampler").sampler,
                              &awqe::required(added, "added"));
    });
}

awqe_status awqe_sampler_draw(awqe_sampler* sampler, const float* logits, size_t count,
                              const uint32_t* context, size_t context_count, const float* added,
                              uint32_t* token, awqe_error* error) {
    awqe::clear(token);
    return awqe::guard(error, [&] {
        awqe::required(token, "token");
        awqe_sampler& own = awqe::required(sampler, "sampler");
        if (count == 0) awqe::fail(AWQE_INVALID_ARGUMENT, "count is 0: there are no logits");
        if (context_count > 0) awqe::required(context, "context");
        *token = own.sampler.sample(&awqe::required(logits, "logits"), count, context,
                                    context_count, added);
    });
}

awqe_status awqe_session_logits(const awqe_session* session, float* logits, size_t count,
                                awqe_error* error) {
    return awqe::guard(error, [&] {
        const awqe::Used used(session);
        awqe::require_vocabulary(count, used->vocabulary());
        used->copy_logits(&awqe::required(logits, "logits"));
    });
}

awqe_status awqe_model_measure_threads(const awqe_model* model, uint32_t* threads,
                                       awqe_error* error) {
    awqe::clear(threads);
    return awqe::guard(error, [&] {
        awqe::required(threads, "threads");
        *threads = awqe::measure_decode_threads(awqe::required(model, "model").shared->model(),
                                                std::getenv("AWQ_EDGE_KERNELS"));
    });
}

awqe_status awqe_read_bandwidth(uint32_t threads, uint64_t bytes, double* bytes_per_second,
                                awqe_error* error) {
    awqe::clear(bytes_per_second);
    return awqe::guard(error, [&] {
        awqe::required(bytes_per_second, "bytes_per_second");
        *bytes_per_second = awqe::measure_read_bandwidth(threads, bytes);
    });
}

awqe_status awqe_gpu_get(awqe_gpu* gpu, awqe_error* error) {
    awqe::clear_sized(gpu);
    return awqe::guard(error, [&] {
        awqe::sized(gpu, "gpu");
        awqe::describe_gpu(gpu);
    });
}

awqe_status awqe_gpu_read_bandwidth(double* bytes_per_second, awqe_error* error) {
    awqe::clear(bytes_per_second);
    return awqe::guard(error, [&] {
        awqe::required(bytes_per_second, "bytes_per_second");
        *bytes_per_second = awqe::gpu_read_bandwidth();
    });
}

const char* awqe_kernels(size_t index) {
    size_t count = 0;
    const awqe::KernelTable* const* tables = awqe::kernel_tables(&count);
    const uint32_t features = awqe::cpu_features();
    for (size_t i = 0; i < count; ++i) {
        if ((tables[i]->required & ~features) == 0 && index-- == 0) return tables[i]->name;
    }
    return nullptr;
}
