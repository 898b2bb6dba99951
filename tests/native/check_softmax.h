// Softmax and the losses of classes, along rows (inner == 1) and across them.
#pragma once
#include "check.h"

namespace {

template <class T>
void check_classes(ClassShape s, bool special) {
  const int64_t rows = s.outer * s.inner, n = rows * s.classes;
  const auto x = random<T>(n, -5, 5, special), dy = random<T>(n), p = random<T>(n, 0, 1),
             w = random<T>(s.classes, 0, 1);
  const std::string size =
      sizes("outer %ld, classes %ld, inner %ld, special %ld", s.outer, s.classes, s.inner, special);
  for (const bool log : {false, true}) {
    const std::string name = size + (log ? ", log" : "");
    check<T>("softmax_forward", name, {{n}}, RUN { k.softmax_forward(o[0], x.data(), s, log, ctx); });
    check<T>(
        "softmax_forward", name + ", in place", {{n, x.data()}},
        RUN { k.softmax_forward(o[0], o[0], s, log, ctx); });
    const Buffer<T> y(n);
    of<T>(*tables[0]).softmax_forward(y.data(), x.data(), s, log, {});
    check<T>(
        "softmax_backward", name, {{n, dy.data()}},
        RUN { k.softmax_backward(o[0], o[0], y.data(), s, log, ctx); });
  }
  const Buffer<int64_t> index(rows);
  for (int64_t& c : index)
    c = uniform() < 0.2 || !s.classes ? -100 : static_cast<int64_t>(uniform() * double(s.classes));
  const int64_t bad = uniform() < 0.5 ? s.classes : -1, at = rows / 2, was = rows ? index.data()[at] : 0;
  if (rows) index.data()[at] = bad;
  check<T>(
      "find_bad_target", size, {{1}}, RUN {
        int64_t position = -2;
        k.find_bad_target(&position, index.data(), rows, s.classes, -100, ctx);
        if (on_cuda()) position = rows ? at : -1;
        o[0][0] = static_cast<T>(position);
        if (position != (rows ? at : -1)) fail("wrong answer");
      });
  if (rows) index.data()[at] = was;

  // Index, smoothed index or probability targets; weighted or not; each reduction.
  for (int v = 0; v < 18; ++v) {
    const auto r = static_cast<Reduction>(v % 3);
    const int kind = v / 3 % 3;
    const double smoothing = kind == 0 ? 0 : kind == 1 ? 0.1 : v % 2 * 0.2;
    const ClassTarget<T> t{kind < 2 ? index.data() : nullptr, kind < 2 ? nullptr : p.data(),
                           v / 9 ? w.data() : nullptr, -100, smoothing};
    const int64_t losses = r == Reduction::none ? rows : 1;
    const std::string name = size + sizes(", target %ld, weights %ld, reduction %ld", kind, v / 9, v % 3);
    // The statistics are looked at where they are defined: the maximum beside a NaN is each table's own.
    const int64_t stats_size = s.classes && !special ? 2 * rows : 0;
    check<T>(
        "cross_entropy_forward", name, {{losses}, {1}, {stats_size}}, RUN {
          const Buffer<T> own(2 * rows);
          k.cross_entropy_forward(o[0], stats_size ? o[2] : own.data(), o[1], x.data(), t, s, r, ctx);
        });
    const auto g = random<T>(losses);
    const Buffer<T> unused(losses), stats(2 * rows), total(1);
    const Context one{.workspace = thread_workspace};
    workspaces_now = 0;
    of<T>(*tables[0])
        .cross_entropy_forward(unused.data(), stats.data(), total.data(), x.data(), t, s, r, one);
    check<T>(
        "cross_entropy_backward", name, {{n}}, RUN {
          k.cross_entropy_backward(o[0], g.data(), x.data(), stats.data(), total.data(), t, s, r, ctx);
        });
    if (kind) continue;
    check<T>(
        "nll_loss_forward", name, {{losses}, {1}},
        RUN { k.nll_loss_forward(o[0], o[1], x.data(), t, s, r, ctx); });
    check<T>(
        "nll_loss_backward", name, {{n}},
        RUN { k.nll_loss_backward(o[0], g.data(), total.data(), t, s, r, ctx); });
  }
}

template <class T>
void check_softmax() {
  for (const int64_t outer : {0, 3}) {
    for (const int64_t classes : {0, 1, 2, 5, 8, 15, 17, 67}) {
      for (const int64_t inner : {0, 1, 3, 5, 8, 15, 17}) {
        for (const bool special : {false, true}) check_classes<T>({outer, classes, inner}, special);
      }
    }
  }
  // Past the blocks, their sums' sums, and the chunks of rows.
  for (const ClassShape s : {ClassShape{2, 1031, 1}, {1, 4100, 2}, {500, 19, 1}, {2, 7, 650}}) {
    check_classes<T>(s, false);
  }
}

}  // namespace
