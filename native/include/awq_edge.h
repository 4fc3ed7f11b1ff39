/// awq_edge.h: the whole C API of the awq-edge runtime, in C99.
///
/// Owns: every symbol that the library exports. Refuses: tokenizing (a host language does that; the
/// tokenizer lies in the model file as a string), printing, global state. Python reads the text
/// between the two cffi markers as it stands.
///
/// Conventions, which hold for every function:
/// - A function that can fail returns an awqe_status and takes `awqe_error* error` last (may be
///   NULL). Out-parameters are cleared before anything else happens. No function aborts, exits or
///   prints; awqe_exit_on_unreadable_file() arranges that a signal does.
/// - Structures that a caller fills or receives begin with `struct_size`, which the caller sets to
///   sizeof(the structure).
/// - Strings are UTF-8 and NUL-terminated; those returned belong to the object they came from and
///   live as long as it does.
/// - A model may be used from several threads at once; a session or a sampler from one thread at a
///   time. A call that finds its session in another call fails with AWQE_INVALID_ARGUMENT and
///   changes nothing. Closing an object counts as using it alone.
/// - Objects are closed in any order: a session keeps what it needs of its model.
/// - A child process may go on with its copies of the parent's objects: threads that a fork leaves
///   behind are started again when they are needed.
/// - A callback runs on the thread of the call. It may end that thread, as a language's runtime
/// does
///   when its process exits; the object is then as between two calls.
#ifndef AWQ_EDGE_H
#define AWQ_EDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* cffi begin */

/// Changes whenever a structure or a function here changes; compared with awqe_abi_version() by
/// whoever loads the library.
#define AWQE_ABI_VERSION 12

typedef enum awqe_status {
    AWQE_OK = 0,
    AWQE_INVALID_ARGUMENT = 1,  ///< The caller passed something that can never work.
    AWQE_FILE_UNREADABLE = 2,   ///< The operating system refused to open or map the file.
    AWQE_FILE_INVALID = 3,      ///< The message names the rule of native/format/FORMAT.md.
    AWQE_UNSUPPORTED = 4,       ///< Well-formed, but not for this library or this CPU.
    AWQE_OUT_OF_MEMORY = 5,
    AWQE_CONTEXT_FULL = 6,  ///< The session's context has no room for that many tokens.
    AWQE_CANCELLED = 7,     ///< A callback returned false.
    AWQE_INTERNAL = 8,      ///< A bug in the library.
    AWQE_DEVICE_LOST = 9    ///< The GPU failed while it computed; what it held is gone.
} awqe_status;

typedef struct awqe_error {
    awqe_status status;
    char message[256];  ///< One sentence, without a final line break.
} awqe_error;

typedef struct awqe_model awqe_model;
typedef struct awqe_session awqe_session;
typedef struct awqe_sampler awqe_sampler;

/// AWQE_ABI_VERSION of the library that was loaded.
uint32_t awqe_abi_version(void);
/// The library's release, for example "0.1.0".
const char* awqe_version(void);

/// Weights are read where the file is mapped. If the system cannot read them any more, because the
/// medium fails or another program has cut the file short, it sends SIGBUS, which ends the process
/// without a word. After this call the process writes "PROGRAM: FILE cannot be read any more: ..."
/// to standard error instead, and ends at once, as _exit(`exit_status`) does. That holds for every
/// file that the process has mapped, on Linux; any other SIGBUS goes where it went before. For
/// programs that own their process, early and once: it takes a signal handler, and nothing here
/// does so unasked. `program`: at most 61 bytes. `exit_status`: 1 to 255.
awqe_status awqe_exit_on_unreadable_file(const char* program, int exit_status, awqe_error* error);

// ---- model: a mapped and validated file ---------------------------------------------------------

/// Maps `path` read-only and validates everything that native/format/FORMAT.md asks for except the
/// checksum.
awqe_status awqe_model_open(const char* path, awqe_model** model, awqe_error* error);
/// Gives up the model: the file is unmapped when the last of its sessions is closed too. NULL is
/// allowed.
void awqe_model_close(awqe_model* model);

typedef struct awqe_model_info {
    uint32_t struct_size;
    uint32_t layers;
    uint32_t hidden_size;
    uint32_t vocabulary_size;
    uint32_t context_length;  ///< Positions the model was trained for.
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    uint64_t parameters;    ///< Weights, without padding.
    uint64_t file_bytes;    ///< Size of the file.
    uint64_t decode_bytes;  ///< Bytes of weights read for one decoded token (one embedding row,
                            ///< everything else once).
} awqe_model_info;

awqe_status awqe_model_info_get(const awqe_model* model, awqe_model_info* info, awqe_error* error);

typedef enum awqe_value_type {
    AWQE_VALUE_UNSIGNED = 0,
    AWQE_VALUE_SIGNED = 1,
    AWQE_VALUE_REAL = 2,
    AWQE_VALUE_BOOLEAN = 3,
    AWQE_VALUE_STRING = 4,
    AWQE_VALUE_ARRAY = 5
} awqe_value_type;

/// One metadata entry. What it points at belongs to the model.
typedef struct awqe_metadata {
    uint32_t struct_size;
    awqe_value_type type;
    awqe_value_type element_type;  ///< Of an array.
    uint32_t element_bytes;        ///< Of an array: 1, 2, 4 or 8; 0 if its elements are strings.
    uint64_t count;                ///< Elements of an array, bytes of a string, otherwise 1.
    uint64_t unsigned_value;       ///< Also 0 or 1 for a boolean.
    int64_t signed_value;
    double real_value;
    const char* key;
    const char* string_value;  ///< `count` bytes; not NUL-terminated. NULL unless a string.
    const void* array_value;   ///< All elements, one behind the other, little-endian, not aligned;
                               ///< each string with its length in front, 64 bits. NULL unless an
                               ///< array.
    uint64_t array_bytes;      ///< Of `array_value`.
} awqe_metadata;

size_t awqe_model_metadata_count(const awqe_model* model);
/// Entries come in file order.
awqe_status awqe_model_metadata_at(const awqe_model* model, size_t index, awqe_metadata* entry,
                                   awqe_error* error);

typedef struct awqe_tensor {
    uint32_t struct_size;
    uint32_t bits;        ///< 2, 3, 4, 5, 6 or 8 for a packed matrix; 32 for float32.
    uint32_t group_size;  ///< Inputs per scale of a packed matrix; 0 for float32.
    uint64_t rows;        ///< Outputs of a packed matrix; 1 for float32.
    uint64_t columns;     ///< Inputs of a packed matrix; elements of a float32 tensor.
    uint64_t offset;      ///< First byte, from the beginning of the file.
    uint64_t bytes;
    const char* name;
} awqe_tensor;

size_t awqe_model_tensor_count(const awqe_model* model);
/// Tensors come in file order.
awqe_status awqe_model_tensor_at(const awqe_model* model, size_t index, awqe_tensor* tensor,
                                 awqe_error* error);

// ---- session: one conversation ------------------------------------------------------------------

/// How a session keeps keys and values.
typedef enum awqe_kv_type {
    AWQE_KV_F16 = 0,
    AWQE_KV_INT8 = 1  ///< With a scale per position and head: about half the memory, less exact.
} awqe_kv_type;

/// What a session computes on. The logits are the same, bit for bit, with exact attention.
typedef enum awqe_device {
    AWQE_DEVICE_CPU = 0,
    AWQE_DEVICE_AUTO = 1,  ///< The GPU where there is one that holds the model, otherwise the CPU.
    AWQE_DEVICE_CUDA = 2   ///< An NVIDIA GPU; AWQE_UNSUPPORTED where there is none.
} awqe_device;

/// awqe_session_options.gpu_layers: as many of the last layers as the GPU's free memory holds.
#define AWQE_GPU_LAYERS_AUTO 0xFFFFFFFF

/// How the attention of prompts computes.
typedef enum awqe_attention {
    AWQE_ATTENTION_EXACT = 0,  ///< In the order that every device keeps: the same bits everywhere.
    AWQE_ATTENTION_TENSOR = 1  ///< On a GPU's fp16 tensor cores: AWQE_DEVICE_CUDA alone. Sooner,
                               ///< and not the same bits; native/ARITHMETIC.md, section 7, has
                               ///< figures. What decodes behind a prompt is exact.
} awqe_attention;

typedef struct awqe_session_options {
    uint32_t struct_size;
    uint32_t context_length;  ///< Positions to keep, at most the model's own; 0 for all of these.
    uint32_t threads;  ///< While decoding; 0 is one for each fast core that the process may use.
    uint32_t prefill_threads;  ///< While reading a prompt; 0 likewise.
    uint32_t kv_type;          ///< An awqe_kv_type.
    uint32_t device;           ///< An awqe_device.
    /// How many of the last layers, and the output matrix, a GPU computes, the CPU the layers
    /// before them; 0 or all of them: the whole model. AWQE_GPU_LAYERS_AUTO is decided when the
    /// model's first session with it is opened.
    uint32_t gpu_layers;
    uint32_t attention;  ///< An awqe_attention.
} awqe_session_options;

typedef struct awqe_memory {
    uint32_t struct_size;
    uint64_t weight_bytes;   ///< Mapped from the file: shared between processes, reclaimable.
    uint64_t cache_bytes;    ///< Keys and values. A layer with a sliding window keeps what it can
                             ///< still see; of pictures that layers look at, one is counted.
    uint64_t scratch_bytes;  ///< Everything else. Sessions of a model that do not compute at the
                             ///< same time share most of it.
} awqe_memory;

/// What awqe_session_open() with the same arguments would need. Allocates nothing.
awqe_status awqe_session_memory(const awqe_model* model, const awqe_session_options* options,
                                awqe_memory* memory, awqe_error* error);

/// What a session would take of a GPU's memory.
typedef struct awqe_gpu_memory {
    uint32_t struct_size;
    uint32_t layers;         ///< Of the last ones, those that the GPU would compute. 0: it has no
                             ///< room, and what follows is what was asked for.
    uint64_t weight_bytes;   ///< Copied, or kept in memory where they are read in place.
    uint64_t cache_bytes;    ///< Keys and values.
    uint64_t scratch_bytes;  ///< Sessions of a model share it.
    uint64_t free_bytes;     ///< As awqe_gpu's: of the GPU's own memory, or of the shared one.
} awqe_gpu_memory;

/// What awqe_session_open() with these options and the device AWQE_DEVICE_CUDA would take of the
/// GPU's memory, and how its layers would be divided. Allocates nothing but the driver's context.
/// AWQE_UNSUPPORTED, with the reason, where there is no GPU, or none that computes this model.
awqe_status awqe_session_gpu_memory(const awqe_model* model, const awqe_session_options* options,
                                    awqe_gpu_memory* memory, awqe_error* error);

/// Creates a session at position 0. `options` may be NULL for the defaults.
/// The environment variable AWQ_EDGE_KERNELS forces one kernel table; a name this CPU cannot run is
/// AWQE_UNSUPPORTED. It also keeps AWQE_DEVICE_AUTO on the CPU.
awqe_status awqe_session_open(const awqe_model* model, const awqe_session_options* options,
                              awqe_session** session, awqe_error* error);
/// Frees the session. NULL is allowed.
void awqe_session_close(awqe_session* session);

/// The active kernel table, for example "avx512", or "cuda"; of a model that is divided both, with
/// the layers of each.
const char* awqe_session_kernels(const awqe_session* session);
/// Threads while decoding (`prefill` false) or reading a prompt (`prefill` true). While other
/// programs take the cores, decoding goes on with fewer of them.
uint32_t awqe_session_threads(const awqe_session* session, bool prefill);
/// Tokens in the context.
uint32_t awqe_session_position(const awqe_session* session);
/// Copies the first `count` tokens of the context, at most awqe_session_position() of them.
/// UINT32_MAX stands where an embedding was read.
awqe_status awqe_session_tokens(const awqe_session* session, uint32_t* tokens, size_t count,
                                awqe_error* error);
/// How many tokens at the beginning of a text, [count], need not be evaluated before the token
/// after the text is drawn: truncate to that, evaluate the others, sample. All of them where the
/// context is this text and its logits are there, otherwise never the last.
awqe_status awqe_session_reusable(const awqe_session* session, const uint32_t* tokens, size_t count,
                                  uint32_t* reusable, awqe_error* error);
/// The lowest position, apart from 0, that awqe_session_truncate() can go back to: 0 unless layers
/// with a sliding window have dropped what came before it.
uint32_t awqe_session_earliest(const awqe_session* session);
/// Forgets every token from `position` on. A position between 0 and awqe_session_earliest() is
/// AWQE_INVALID_ARGUMENT.
awqe_status awqe_session_truncate(awqe_session* session, uint32_t position, awqe_error* error);

typedef enum awqe_logits {
    AWQE_LOGITS_NONE = 0,
    AWQE_LOGITS_LAST = 1,  ///< [vocabulary_size]: after the last token of the call.
    AWQE_LOGITS_ALL = 2    ///< [count, vocabulary_size]: after each token of the call.
} awqe_logits;

/// Called between blocks of a prompt; returning false cancels: the session keeps the `done` tokens
/// it has read. Likewise between parts of a picture.
typedef bool (*awqe_progress)(void* user, size_t done, size_t total);

/// Appends `tokens` [count] to the context and computes logits. `which` is an awqe_logits. A
/// `count` that the context has no room for is AWQE_CONTEXT_FULL, before any token is read.
///
/// `logits` may be NULL; a copy of the last token's logits then still serves awqe_session_sample(),
/// unless `which` is AWQE_LOGITS_NONE. The result does not depend on how a sequence is divided into
/// calls, nor on the number of threads.
awqe_status awqe_session_evaluate(awqe_session* session, const uint32_t* tokens, size_t count,
                                  uint32_t which, float* logits, awqe_progress progress, void* user,
                                  awqe_error* error);

/// Appends what is no token of the vocabulary, for example a picture: `embeddings`, float
/// [count, hidden_size], take the place of the rows that tokens would have of the embedding matrix,
/// at the entrance of the first layer; where awqe_vision_info has a larger embedding_size they are
/// so long, and the first layers add what follows to their outputs. Otherwise as
/// awqe_session_evaluate(); but where awqe_vision_info says `bidirectional`, `count` is that of a
/// picture and no other, and the picture is read as a whole: AWQE_UNSUPPORTED on a GPU. Truncating
/// to within one leaves rows that have seen what is gone.
awqe_status awqe_session_evaluate_embeddings(awqe_session* session, const float* embeddings,
                                             size_t count, uint32_t which, float* logits,
                                             awqe_progress progress, void* user, awqe_error* error);

/// Of a model whose layers look at pictures (awqe_vision_info.session_bytes): from the next
/// position on they look at this one, until another call says otherwise; before the first call at
/// none. `rows`: float [count, embedding_size], a picture's embeddings as awqe_vision_encode()
/// gives them, which are its keys and values in every such layer; the session keeps them as halves.
/// NULL: no picture from here on. What awqe_session_truncate() forgets takes its pictures with it.
awqe_status awqe_session_look_at(awqe_session* session, const float* rows, size_t count,
                                 awqe_error* error);

/// Bytes of the positions from `begin` to before `end` of the context, saved: at least one, at most
/// awqe_session_position() is the end, and less than that only from awqe_session_earliest() on.
awqe_status awqe_session_saved_bytes(const awqe_session* session, uint32_t begin, uint32_t end,
                                     uint64_t* bytes, awqe_error* error);
/// Writes them to `bytes` [size], as many as awqe_session_saved_bytes() says. What reaches to the
/// end of the context is saved with its logits, if it has them.
awqe_status awqe_session_save(const awqe_session* session, uint32_t begin, uint32_t end,
                              void* bytes, size_t size, awqe_error* error);
/// Makes what was saved from 0 on the context of `session`; what was saved from another position on
/// is appended to a context that ends there, whose tokens must be those that it followed then.
/// Everything then goes on as if the session had read the text itself, to the bit. What was saved
/// with another model or type of cache, or behind another text, is AWQE_INVALID_ARGUMENT, by
/// another release AWQE_UNSUPPORTED, and damaged bytes are AWQE_FILE_INVALID: the context is then
/// what it was.
awqe_status awqe_session_restore(awqe_session* session, const void* bytes, size_t size,
                                 awqe_error* error);

// ---- batch: several sessions together -----------------------------------------------------------

/// What one session reads in a call of awqe_batch_evaluate(): the arguments of
/// awqe_session_evaluate(), or of awqe_session_evaluate_embeddings(), and what else is wanted.
typedef struct awqe_batch_input {
    uint32_t struct_size;
    uint32_t which;  ///< An awqe_logits.
    awqe_session* session;
    const uint32_t* tokens;   ///< [count]; NULL for embeddings.
    const float* embeddings;  ///< As in awqe_session_evaluate_embeddings(); NULL for tokens.
    size_t count;
    /// Of a picture whose `embeddings` these are, row by row: models that turn positions by rows
    /// and columns need it. 0: one after the other, as tokens.
    uint32_t columns;
    float* logits;  ///< As in awqe_session_evaluate(); may be NULL.
    /// float [count, hidden_size], to be filled: what the output matrix reads after each token, the
    /// last layer's stream behind the final norm. NULL for none.
    float* hidden;
} awqe_batch_input;

/// Evaluates `inputs` [input_count] together, each a different session of one model: the weights
/// are read once for up to 128 tokens of all of them. Every session gets what it would get alone,
/// to the bit, whatever the others read. All inputs are checked before any is read. `progress` is
/// told of tokens of all inputs; cancelled, each session keeps what it has read, which its position
/// says.
///
/// Serving many texts is a loop over this call: sessions that decode give one token each, a session
/// with a long prompt gives the next part of it, and sessions join and leave between two calls.
awqe_status awqe_batch_evaluate(const awqe_batch_input* inputs, size_t input_count,
                                awqe_progress progress, void* user, awqe_error* error);

// ---- vision: pictures as embeddings -------------------------------------------------------------

/// The vision part of a model. What it points at belongs to the model.
typedef struct awqe_vision_info {
    uint32_t struct_size;
    uint32_t layers;  ///< Of the tower.
    uint32_t hidden_size;
    uint32_t heads;
    uint32_t head_size;
    uint32_t feed_forward_size;
    uint32_t image_size;      ///< Pixels on a side of the square pictures that the tower reads; or,
                              ///< with `step`, the most.
    uint32_t patch_size;      ///< The same of a patch.
    uint32_t tokens;          ///< Embeddings that a picture becomes; 0 with `step`.
    uint32_t embedding_size;  ///< Numbers of each: the decoder's hidden size, or more: what its
                              ///< layers look at, or take up one after the other.
    uint64_t weight_bytes;    ///< Of its tensors, mapped from the file.
    uint64_t session_bytes;   ///< That a session keeps of each picture that its layers look at, by
                              ///< awqe_session_look_at(); 0: a picture's embeddings are read in the
                              ///< place of tokens.
    const float* newline;     ///< [embedding_size]: the embedding that this family puts behind a
                              ///< row of a picture's embeddings; NULL where there is none.
    uint32_t step;            ///< Not 0: height and width of a picture are multiples of it, and it
                              ///< becomes an embedding for every square of so many pixels.
    bool bidirectional;       ///< A picture's embeddings see each other, the first the last too.
} awqe_vision_info;

/// A model without a vision part is AWQE_UNSUPPORTED, here and below.
awqe_status awqe_vision_info_get(const awqe_model* model, awqe_vision_info* info,
                                 awqe_error* error);

/// Bytes of working memory that awqe_vision_encode() takes from the system and gives back, beside
/// its arguments, for pictures of `height` x `width` pixels, 0 x 0 being squares of image_size.
/// `threads` 0 is one for each fast core that the process may use.
awqe_status awqe_vision_memory(const awqe_model* model, uint32_t height, uint32_t width,
                               uint32_t threads, uint64_t* scratch_bytes, awqe_error* error);

/// Encodes pictures for awqe_session_evaluate_embeddings(), on the CPU whatever device the session
/// is on. `pixels`: [count, height, width, 3], red first, row by row from the top;
/// `embeddings`: float [count, tokens, embedding_size], to be filled. A picture's embeddings do not
/// depend on the others, on the number of threads or on the kernel table, which AWQ_EDGE_KERNELS
/// chooses as it does for a session.
///
/// `progress` is told of parts of the work: for each picture its patches, every layer, and what
/// stands behind them. Cancelled, the call leaves the pictures that were through in `embeddings`.
awqe_status awqe_vision_encode(const awqe_model* model, const uint8_t* pixels, size_t count,
                               uint32_t height, uint32_t width, uint32_t threads, float* embeddings,
                               awqe_progress progress, void* user, awqe_error* error);

// ---- sampler ------------------------------------------------------------------------------------

typedef struct awqe_sampling {
    uint32_t struct_size;
    uint32_t top_k;     ///< Keep the k most likely tokens; 0 keeps all.
    float temperature;  ///< 0 is greedy: the most likely token, the lowest id on a tie.
    float top_p;        ///< Keep the smallest set whose probability reaches this; 1 keeps all.
    float min_p;        ///< Drop tokens less likely than this share of the likeliest; 0 keeps all.
    float repetition_penalty;    ///< Divides positive and multiplies negative logits of recent
                                 ///< tokens; 1 is off.
    uint32_t repetition_window;  ///< Tokens that count as recent; 0 is the whole context.
    uint64_t seed;
} awqe_sampling;

awqe_status awqe_sampler_open(const awqe_sampling* sampling, awqe_sampler** sampler,
                              awqe_error* error);
/// Frees the sampler. NULL is allowed.
void awqe_sampler_close(awqe_sampler* sampler);

/// Sets which random number of its stream a sampler uses next, counted from 0. Every token that is
/// drawn uses one, unless the temperature is 0: with the number of a text's drawn tokens before
/// each awqe_session_sample(), a step that was broken off can be done again.
awqe_status awqe_sampler_seek(awqe_sampler* sampler, uint64_t draw, awqe_error* error);

/// Draws the next token from the logits of the session's last awqe_session_evaluate(). Does not
/// append it. Order: repetition penalty, temperature, top-k, top-p, min-p. Equal seeds and equal
/// logits give equal tokens everywhere.
awqe_status awqe_session_sample(const awqe_session* session, awqe_sampler* sampler, uint32_t* token,
                                awqe_error* error);
/// The same from logits to which `added` [count] is added after the repetition penalty; `count` is
/// the size of the vocabulary. -INFINITY excludes a token, whatever else holds; at least one must
/// be left.
awqe_status awqe_session_sample_adjusted(const awqe_session* session, awqe_sampler* sampler,
                                         const float* added, size_t count, uint32_t* token,
                                         awqe_error* error);
/// Draws from a caller's `logits` [count] as awqe_session_sample_adjusted() does from the
/// session's, `count` being the size of the vocabulary: after a guess was read with
/// AWQE_LOGITS_ALL, what each of its rows would have been followed by. `context` [context_count]:
/// the tokens so far. `added` [count] may be NULL.
awqe_status awqe_sampler_draw(awqe_sampler* sampler, const float* logits, size_t count,
                              const uint32_t* context, size_t context_count, const float* added,
                              uint32_t* token, awqe_error* error);
/// Copies the logits that awqe_session_sample() draws from to `logits` [count]; `count` is the size
/// of the vocabulary.
awqe_status awqe_session_logits(const awqe_session* session, float* logits, size_t count,
                                awqe_error* error);

// ---- measurement --------------------------------------------------------------------------------

/// The number of threads with which this machine decodes `model` best: the smallest one within 5 %
/// of the fastest. Runs products of the model's own weights, for two tenths of a second or so; ask
/// once and keep the answer.
awqe_status awqe_model_measure_threads(const awqe_model* model, uint32_t* threads,
                                       awqe_error* error);

/// Reads `bytes` of memory with `threads` threads several times, in several orders, and gives the
/// highest rate: what decoding can reach at best.
awqe_status awqe_read_bandwidth(uint32_t threads, uint64_t bytes, double* bytes_per_second,
                                awqe_error* error);

// ---- the GPU ------------------------------------------------------------------------------------

typedef struct awqe_gpu {
    uint32_t struct_size;
    uint32_t capability;       ///< Compute capability, 10 * major + minor: 87 is a Jetson Orin.
    uint32_t driver_version;   ///< Of CUDA that the driver supports, 1000 * major + 10 * minor.
    uint32_t multiprocessors;  ///< Power modes of a Jetson switch some off.
    bool integrated;           ///< CPU and GPU share one memory.
    uint64_t memory_bytes;
    uint64_t free_bytes;  ///< Where CPU and GPU share one memory, what the system has available.
    /// Weights are read where the file is mapped. Otherwise the GPU gets a copy, and where CPU and
    /// GPU share one memory `copy_reason` says why, in a few words.
    bool in_place;
    char name[128];
    char copy_reason[128];
} awqe_gpu;

/// The GPU that AWQE_DEVICE_CUDA computes on; AWQE_UNSUPPORTED, with the reason, where there is
/// none.
awqe_status awqe_gpu_get(awqe_gpu* gpu, awqe_error* error);

/// Has that GPU read its memory several times, and gives the highest rate: what decoding can reach
/// there at best. Takes some tenths of a second and at most 256 MB.
awqe_status awqe_gpu_read_bandwidth(double* bytes_per_second, awqe_error* error);

// ---- this CPU -----------------------------------------------------------------------------------

/// The index-th kernel table that this CPU can run, best first: 0 is what a session takes, the last
/// one is "reference". NULL beyond the last.
const char* awqe_kernels(size_t index);

/// One operation of one kernel table in the self-test.
typedef struct awqe_selftest_result {
    uint32_t struct_size;
    uint32_t cases;
    uint32_t differing;     ///< Cases whose bits were not those of the reference.
    const char* kernels;    ///< The table; "reference" itself is compared with recorded results.
    const char* operation;  ///< For people, for example "matrix-vector, 4 bits".
} awqe_selftest_result;

/// Called for each operation of each table; returning false ends the self-test with AWQE_CANCELLED.
typedef bool (*awqe_selftest_report)(void* user, const awqe_selftest_result* result);

/// Runs every kernel that this CPU can run on a grid of shapes, in seconds, and compares its bits.
/// AWQE_OK says that all was run; `report` is told what differs.
awqe_status awqe_selftest(awqe_selftest_report report, void* user, awqe_error* error);

/// The same of every kernel that the GPU has, each on small shapes: `operation` is its name.
/// Attention on tensor cores is held to its bound instead. AWQE_UNSUPPORTED where there is no GPU.
awqe_status awqe_gpu_selftest(awqe_selftest_report report, void* user, awqe_error* error);

/* cffi end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
