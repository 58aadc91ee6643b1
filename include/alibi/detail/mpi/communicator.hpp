// The MPI calls of attention over several ranks: collectives that count their bytes, agreement on errors, and messages
// that travel while a rank computes. Internal.
//
// Every call of a ContextParallel starts with an agreement. A rank whose arguments are wrong, or that lacks memory,
// takes part in it with its error, and all ranks throw that of the first such rank. After the agreement no rank leaves
// the exchange before the next one: work that may fail runs in Outcome::attempt(), and a rank that has failed still
// sends and receives what the others expect.
#pragma once

#if !defined(OMPI_SKIP_MPICXX)
#define OMPI_SKIP_MPICXX 1
#endif
#if !defined(MPICH_SKIP_MPICXX)
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "alibi/error.hpp"
#include "alibi/kernel/simd/isa.hpp"

namespace alibi::inline ALIBI_ABI {

/// What the last call of a ContextParallel has done on this rank. A tile is 64 keys of one kv head and their values.
struct ContextStatistics {
  Index bytes_sent = 0;        ///< keys, values and gradients, and what ranks tell each other about them
  Index bytes_received = 0;    ///< the same
  Index tiles_fetched = 0;     ///< the number of tiles of other ranks that were fetched
  Index tiles_computed = 0;    ///< the number of pairs of a block of queries and a tile, as in PruningStats
  Index ranks_asked = 0;       ///< the number of other ranks that sent keys; over a cache: of ranks that attended
  double seconds_waiting = 0;  ///< the time in which this rank only waited for others
};

namespace detail {

/// Whether the work of this rank has failed, and why. It allocates nothing.
class Outcome {
 public:
  enum class Kind : std::int32_t { success, invalid_argument, no_memory, other };

  /// Calls body() unless something has failed already. An exception becomes the outcome.
  template <class Body>
  void attempt(const Body& body) noexcept {
    if (failed()) return;
    try {
      body();
    } catch (const std::invalid_argument& error) {
      set(Kind::invalid_argument, error.what());
    } catch (const std::bad_alloc&) {
      set(Kind::no_memory, "out of memory");
    } catch (const std::exception& error) {
      set(Kind::other, error.what());
    } catch (...) {
      set(Kind::other, "an exception that is no std::exception");
    }
  }
  bool failed() const { return kind_ != Kind::success; }

  void set(Kind kind, const char* message) {
    kind_ = kind;
    const char* const prefix = "alibi: ";
    if (std::strncmp(message, prefix, std::strlen(prefix)) == 0) message += std::strlen(prefix);
    std::snprintf(message_.data(), message_.size(), "%s", message);
  }
  /// Throws the error of rank `rank`.
  [[noreturn]] void raise(int rank) const {
    const std::string text = "alibi: rank " + std::to_string(rank) + ": " + message_.data();
    if (kind_ == Kind::invalid_argument) throw std::invalid_argument(text);
    throw std::runtime_error(text);
  }

 private:
  friend class Communicator;
  Kind kind_ = Kind::success;
  std::array<char, 508> message_{};
};

/// One argument of a call that must be the same on all ranks.
struct SharedField {
  enum class Kind { integer, real, choice, content };
  const char* name;
  Kind kind;
  std::int64_t value = 0;
  const char* const* choices = nullptr;  // the names of the values of a choice

  static SharedField of(const char* name, Index value) { return {name, Kind::integer, value, nullptr}; }
  static SharedField of(const char* name, double value) {
    return {name, Kind::real, std::bit_cast<std::int64_t>(value), nullptr};
  }
  /// What is compared by a hash only.
  static SharedField content(const char* name, std::uint64_t hash) {
    return {name, Kind::content, std::bit_cast<std::int64_t>(hash), nullptr};
  }

  void print(char* to, std::size_t size, std::int64_t x) const {
    if (kind == Kind::integer)
      std::snprintf(to, size, "%lld", static_cast<long long>(x));
    else if (kind == Kind::real)  // as many digits as tell it from every other number
      *std::to_chars(to, to + size - 1, std::bit_cast<double>(x)).ptr = '\0';
    else
      std::snprintf(to, size, "%s", choices ? choices[x] : "");
  }
};

/// A hash of a sequence of numbers (FNV-1a).
class ContentHash {
 public:
  void add(double x) {
    for (int i = 0; i < 8; i++) {
      value_ ^= std::bit_cast<std::uint64_t>(x) >> (8 * i) & 0xff;
      value_ *= 0x100000001b3;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

/// A communicator of its own, and the statistics of the current call.
class Communicator {
 public:
  static constexpr std::size_t kFields = 20;

  explicit Communicator(MPI_Comm comm) {
    int running = 0;
    MPI_Initialized(&running);
    require(running != 0, "MPI is not running; expected MPI_Init() before a ContextParallel is made");
    MPI_Comm_dup(comm, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    MPI_Type_contiguous(int(kBlock), MPI_BYTE, &block_);
    MPI_Type_commit(&block_);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  ~Communicator() {
    int finished = 0;
    MPI_Finalized(&finished);
    if (finished) return;
    MPI_Type_free(&block_);
    MPI_Comm_free(&comm_);
  }

  int rank() const { return rank_; }
  int size() const { return size_; }
  ContextStatistics statistics;

  /// Throws the error of the first rank that has failed, on all ranks.
  void agree(const Outcome& outcome) {
    int mine = outcome.failed() ? rank_ : size_, first = size_;
    timed([&] { MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, comm_); });
    if (first < size_) raise(outcome, first);
  }
  /// The same, and throws std::invalid_argument on all ranks if a field differs from that of rank 0. `all` has room for
  /// kFields + 1 numbers of each rank.
  void agree(const Outcome& outcome, std::span<const SharedField> fields, std::span<std::int64_t> all) {
    constexpr std::size_t kNumbers = kFields + 1;
    std::array<std::int64_t, kNumbers> mine{};
    mine[0] = outcome.failed();
    for (std::size_t f = 0; f < fields.size(); f++) mine[f + 1] = fields[f].value;
    all_gather<std::int64_t>(mine, all);
    for (int r = 0; r < size_; r++)
      if (all[std::size_t(r) * kNumbers] != 0) raise(outcome, r);
    for (std::size_t f = 0; f < fields.size(); f++)
      for (int r = 1; r < size_; r++) {
        const std::int64_t is = all[std::size_t(r) * kNumbers + f + 1], should = all[f + 1];
        if (is == should) continue;
        char text[256], got[64], expected[64];
        fields[f].print(got, sizeof got, is);
        fields[f].print(expected, sizeof expected, should);
        if (fields[f].kind == SharedField::Kind::content)
          std::snprintf(text, sizeof text, "%s other than those of rank 0; expected the same on all ranks",
                        fields[f].name);
        else
          std::snprintf(text, sizeof text, "%s %s; expected %s, as on rank 0", fields[f].name, got, expected);
        Outcome differs;
        differs.set(Outcome::Kind::invalid_argument, text);
        differs.raise(r);
      }
  }

  template <class X>
  void all_gather(std::span<const X> mine, std::span<X> all) {
    timed([&] { MPI_Allgather(mine.data(), bytes_of(mine), MPI_BYTE, all.data(), bytes_of(mine), MPI_BYTE, comm_); });
    count(Index(mine.size_bytes()) * (size_ - 1), Index(mine.size_bytes()) * (size_ - 1));
  }
  /// As all_gather(), with counts[r] entries of rank r.
  template <class X>
  void all_gather(std::span<const X> mine, std::span<X> all, std::span<const int> bytes, std::span<const int> begin) {
    timed([&] {
      MPI_Allgatherv(mine.data(), bytes_of(mine), MPI_BYTE, all.data(), bytes.data(), begin.data(), MPI_BYTE, comm_);
    });
    Index received = 0;
    for (int r = 0; r < size_; r++)
      if (r != rank_) received += bytes[std::size_t(r)];
    count(Index(mine.size_bytes()) * (size_ - 1), received);
  }
  /// Entry r of `given` goes to rank r.
  template <class X>
  void all_to_all(std::span<const X> given, std::span<X> taken) {
    timed([&] { MPI_Alltoall(given.data(), int(sizeof(X)), MPI_BYTE, taken.data(), int(sizeof(X)), MPI_BYTE, comm_); });
    count(Index(sizeof(X)) * (size_ - 1), Index(sizeof(X)) * (size_ - 1));
  }
  template <class X>
  void broadcast(std::span<X> data, int root) {
    timed([&] { MPI_Bcast(data.data(), bytes_of(std::span<const X>(data)), MPI_BYTE, root, comm_); });
    rank_ == root ? count(Index(data.size_bytes()) * (size_ - 1), 0) : count(0, Index(data.size_bytes()));
  }

  // Messages between two ranks. Long ones are sent in blocks of kBlock bytes; buffers are rounded up to whole blocks.
  static std::size_t buffer_size(std::size_t bytes) { return (bytes + kBlock - 1) / kBlock * kBlock; }
  void send(const void* data, std::size_t bytes, int to, int tag, MPI_Request& request) {
    const bool in_blocks = bytes > kMost;
    MPI_Isend(data, int(in_blocks ? buffer_size(bytes) / kBlock : bytes), in_blocks ? block_ : MPI_BYTE, to, tag, comm_,
              &request);
    count(Index(bytes), 0);
  }
  void receive(void* data, std::size_t bytes, int from, int tag, MPI_Request& request) {
    const bool in_blocks = bytes > kMost;
    MPI_Irecv(data, int(in_blocks ? buffer_size(bytes) / kBlock : bytes), in_blocks ? block_ : MPI_BYTE, from, tag,
              comm_, &request);
    count(0, Index(bytes));
  }
  /// Runs a body that only waits.
  template <class Body>
  void timed(const Body& body) {
    const double start = MPI_Wtime();
    body();
    statistics.seconds_waiting += MPI_Wtime() - start;
  }

 private:
  static constexpr std::size_t kBlock = 4096, kMost = std::size_t(1) << 30;

  template <class X>
  static int bytes_of(std::span<const X> x) {
    return int(x.size_bytes());
  }
  void count(Index sent, Index received) {
    statistics.bytes_sent += sent;
    statistics.bytes_received += received;
  }
  [[noreturn]] void raise(const Outcome& outcome, int first) {
    Outcome theirs = outcome;
    MPI_Bcast(&theirs.kind_, int(sizeof theirs.kind_), MPI_BYTE, first, comm_);
    MPI_Bcast(theirs.message_.data(), int(theirs.message_.size()), MPI_BYTE, first, comm_);
    theirs.raise(first);
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  MPI_Datatype block_ = MPI_DATATYPE_NULL;
  int rank_ = 0, size_ = 1;
};

/// Messages of a rank to and from others, of which two each way travel at a time. All ranks send and receive in the
/// order of the distance between the two ranks, those from the left before those from the right. The pair of ranks that
/// comes first in this order among all messages that have not arrived can always proceed, so that no rank waits for
/// ever.
class Exchange {
 public:
  struct Message {
    int peer;
    std::size_t bytes;
  };
  using Pack = std::function<void(Index, std::byte*)>;  // writes message i of those to be sent

  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  /// Allocates the buffers. Empty messages must be left out.
  void prepare(Communicator& mpi, int tag, std::vector<Message> receives, std::vector<Message> sends, Pack pack) {
    mpi_ = &mpi, tag_ = tag;
    receives_ = std::move(receives), sends_ = std::move(sends), pack_ = std::move(pack);
    sort(receives_, true);
    sort(sends_, false);
    for (std::size_t i = 0; i < 2; i++) {
      buffers_[i].resize(largest(receives_));
      buffers_[2 + i].resize(largest(sends_));
    }
  }
  std::span<const Message> receives() const { return receives_; }
  std::span<const Message> sends() const { return sends_; }

  void start() {
    for (int i = 0; i < 2; i++) post_receive();
    for (std::size_t slot = 2; slot < 4; slot++) post_send(slot);
  }
  /// Lets messages proceed without waiting.
  void progress() {
    for (;;) {
      int index = 0, done = 0;
      MPI_Testany(4, requests_.data(), &index, &done, MPI_STATUS_IGNORE);
      if (!done || index == MPI_UNDEFINED) return;
      handle(std::size_t(index));
    }
  }
  /// Calls body(i, bytes) for each message i of receives(), in rising order, and waits until all messages have been
  /// sent. All messages travel, also after `outcome` has failed, because other ranks wait for them.
  template <class Body>
  void receive_all(Outcome& outcome, const Body& body) {
    for (Index i = 0; i < Index(receives_.size()); i++) {
      const auto slot = std::size_t(i % 2);
      while (!arrived_[slot]) wait();
      outcome.attempt([&] { body(i, reinterpret_cast<const std::byte*>(buffers_[slot].data())); });
      arrived_[slot] = false;
      post_receive();
    }
    while (sent_ < Index(sends_.size())) wait();
  }

 private:
  void sort(std::vector<Message>& messages, bool received) const {
    const int me = mpi_->rank();
    const auto key = [&](const Message& x) {
      const bool from_left = received ? x.peer < me : me < x.peer;
      return std::pair(std::abs(x.peer - me), from_left ? 0 : 1);
    };
    std::sort(messages.begin(), messages.end(), [&](const Message& a, const Message& b) { return key(a) < key(b); });
  }
  /// The size of a buffer for any of the messages, in pieces of 64 bytes.
  static std::size_t largest(const std::vector<Message>& messages) {
    std::size_t bytes = 0;
    for (const Message& message : messages) bytes = std::max(bytes, message.bytes);
    return Communicator::buffer_size(bytes) / sizeof(Line);
  }
  void post_receive() {
    if (next_receive_ == Index(receives_.size())) return;
    const auto slot = std::size_t(next_receive_ % 2);
    const Message& message = receives_[std::size_t(next_receive_++)];
    mpi_->receive(buffers_[slot].data(), message.bytes, message.peer, tag_, requests_[slot]);
  }
  void post_send(std::size_t slot) {
    if (next_send_ == Index(sends_.size())) return;
    const Message& message = sends_[std::size_t(next_send_)];
    pack_(next_send_, reinterpret_cast<std::byte*>(buffers_[slot].data()));
    mpi_->send(buffers_[slot].data(), message.bytes, message.peer, tag_, requests_[slot]);
    next_send_++;
  }
  void wait() {
    int index = 0;
    mpi_->timed([&] { MPI_Waitany(4, requests_.data(), &index, MPI_STATUS_IGNORE); });
    handle(std::size_t(index));
  }
  void handle(std::size_t slot) {
    if (slot < 2) {
      arrived_[slot] = true;
    } else {
      sent_++;
      post_send(slot);
    }
  }

  struct alignas(64) Line {
    std::byte bytes[64];
  };
  Communicator* mpi_ = nullptr;
  int tag_ = 0;
  std::vector<Message> receives_, sends_;
  Pack pack_;
  std::array<std::vector<Line>, 4> buffers_;
  std::array<MPI_Request, 4> requests_{MPI_REQUEST_NULL, MPI_REQUEST_NULL, MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  std::array<bool, 2> arrived_{};
  Index next_receive_ = 0, next_send_ = 0, sent_ = 0;
};

}  // namespace detail
}  // namespace alibi::inline ALIBI_ABI
