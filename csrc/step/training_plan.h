// A planned training step of a model, and of its loss and optimizer: what runs when all decisions are taken.
// minidl/step/ takes them, and fills it through bindings.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <mutex>
#include <optional>
#include <variant>
#include <vector>

#include "step/plan.h"

namespace minidl {

// The update of one parameter group. On a GPU, `rate` is its learning rate where that is a tensor there.
struct Update {
  struct Row {
    at::Tensor param;
    int64_t grad;  // slot
    std::array<at::Tensor, 3> state;
    at::Tensor step;  // what counts the updates, where the optimizer does
    bool first;       // as OptimizerTensor
    // The number of the product that is its gradient, where that is made row by row with the update; else -1. Such rows
    // come last.
    int64_t product;
  };
  OptimizerOptions options = no_options;  // read anew before each run
  std::optional<at::Tensor> rate;         // likewise
  std::vector<Row> rows;
};

// The first `count` batches of a data set, its rows in the order of `order`, if there is one.
struct Batches {
  const at::Tensor &x, &y;
  const std::optional<at::Tensor>& order;
  int64_t count;
};

class TrainingPlan {
 public:
  // offsets: of each slot in the plan's own memory of so many bytes, or -1 for a slot to be bound.
  TrainingPlan(at::ScalarType dtype, at::Device device, std::vector<int64_t> offsets, int64_t bytes);
  virtual ~TrainingPlan() = default;
  TrainingPlan(const TrainingPlan&) = delete;
  TrainingPlan& operator=(const TrainingPlan&) = delete;

  at::ScalarType dtype() const { return dtype_; }

  // While planning. A bound tensor is read where it lies when the plan runs.
  void bind(int64_t slot, at::Tensor tensor, bool written);
  void bind_batch(int64_t x_slot, const at::Tensor& x, int64_t y_slot, const at::Tensor& y,
                  int64_t loss_slot);
  void draw_into(int64_t slot) { drawn_.push_back(slot); }  // two random words before each step
  void count(at::Tensor counter) { counters_.push_back(std::move(counter)); }  // + 1 after each step
  // Calls from here on are made once nothing can go wrong any more, and before the update.
  virtual void begin_commit() = 0;
  // Calls from here on are products that updates refer to, from 0 on.
  virtual void begin_products() = 0;
  std::vector<Update> updates;
  // Planned; nothing is bound, counted or updated from here on.
  void finish();

  // Whether x and y are of the planned kind, and everything bound is as it was when planned, but for its address.
  bool fits(const at::Tensor& x, const at::Tensor& y) const;
  // Likewise for tensors with any number of rows, of which a step takes the planned number.
  bool fits_rows(const at::Tensor& x, const at::Tensor& y) const;
  // Whether there are as many rows, and numbers of rows, as the batches take.
  bool has_batches(const Batches& b) const;
  // One step, whose loss is written to `loss`, a tensor of one element of the plan's dtype. x and y fit.
  void step(const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss);
  // All batches, on the CPU, `epochs` times; losses: where to write the loss of each step. poll is called now and
  // then between two steps and may throw.
  void run(const Batches& batches, int64_t epochs, double* losses, const std::function<void()>& poll);

  // The same step in parts, for a CUDA graph: enqueue() is what is captured; prepare() goes before each replay, and
  // says whether a graph that was captured since it last said so would now do something else; replayed() goes after.
  bool prepare();
  void enqueue(const at::Tensor& x, const at::Tensor& y, const at::Tensor& loss);
  void replayed(int64_t steps = 1);

  // On a GPU: whether a step is so small that the loop of steps is quickest in a single block; and that loop, from the
  // step numbered `first` on (of a data set's `count` batches, again and again), as many as `losses` has elements of
  // the plan's dtype. batch_x and batch_y: what the calls find a batch in.
  virtual bool fits_block() const = 0;
  void run_block(const Batches& batches, int64_t first, const at::Tensor& losses, const at::Tensor& batch_x,
                 const at::Tensor& batch_y);

  // Whether a step has been made, of a run that failed later too.
  bool has_stepped() const { return has_stepped_; }

  // Held while the plan runs: its memory serves one step at a time.
  std::mutex mutex;

 protected:
  virtual void resolve_updates() = 0;
  virtual void run_step() = 0;
  virtual double loss() const = 0;
  virtual void launch_block(const Batches& batches, int64_t first, const at::Tensor& losses) = 0;

  bool on_cpu() const { return memory_.is_cpu(); }

  struct Input {
    int64_t slot = -1;
    at::ScalarType dtype;
    at::DimVector sizes;
    int64_t row_bytes() const {
      return c10::multiply_integers(at::IntArrayRef(sizes).slice(1)) * c10::elementSize(dtype);
    }
  };

  at::Tensor memory_;
  std::vector<char*> slots_;
  Input x_, y_;
  int64_t loss_slot_ = -1;
  std::vector<int64_t> drawn_;
  std::vector<at::Tensor> counters_;
  // On a GPU, where a captured graph reads what changes between steps: the learning rate of each group, float64, and
  // for each row, one group after the other, the number of updates so far, float32. And what was written there.
  at::Tensor rates_, steps_;
  std::vector<double> rates_there_, steps_there_;

 private:
  struct Bound {
    int64_t slot;
    at::Tensor tensor;
    bool written, requires_grad;
    at::DimVector sizes, strides;
  };
  // What a captured graph has fixed.
  struct Fixed {
    std::vector<const void*> addresses;
    std::vector<OptimizerOptions> options;
    bool allow_tf32, allow_conv_tf32;
    bool operator==(const Fixed&) const = default;
  };
  bool fits_bound() const;
  bool fits(const Input& planned, const at::Tensor& x, bool any_rows) const;
  at::Tensor in_memory(int64_t slot, at::IntArrayRef sizes, at::ScalarType dtype) const;
  Fixed fixed() const;
  void write_scalars();
  void begin();
  void draw();
  void one_step();
  int threads() const;
  void end();

  at::ScalarType dtype_;
  std::vector<Bound> bound_;
  std::vector<c10::TensorImpl*> written_;
  std::vector<char> gathered_;
  std::optional<Fixed> captured_;
  bool has_stepped_ = false;
};

template <class T>
class TrainingPlanOf final : public TrainingPlan {
 public:
  using TrainingPlan::TrainingPlan;
  Plan<T>& planned() { return *planned_; }
  void begin_commit() override { planned_ = &commit_; }
  void begin_products() override { planned_ = &products_; }
  bool fits_block() const override;

 private:
  // Adam's step number, and what follows from it: a multiplication a step instead of two powers.
  struct Corrections {
    double step = -1, beta1 = 0, beta2 = 0, power1 = 1, power2 = 1, correction1 = 0, correction2 = 0;
    void advance(double to, const AdamParams& p);
  };
  // An update with the addresses of a run.
  struct Resolved {
    std::vector<OptimizerTensor<T>> rows;
    std::vector<std::variant<std::monostate, float*, double*>> steps;
    Corrections corrections;
  };
  void resolve_updates() override;
  void run_step() override;
  double loss() const override;
  void launch_block(const Batches& batches, int64_t first, const at::Tensor& losses) override;
  // products: those that updates refer to, with the addresses of the step.
  void update(Update& u, Resolved& r, const std::vector<BlockCall<T>>& products, const KernelsOf<T>& k,
              const Context& ctx);

  Plan<T> plan_, commit_, products_;
  Plan<T>* planned_ = &plan_;
  std::vector<Resolved> resolved_;
};

}  // namespace minidl
