// T5's bias as a table of distances, and the gradient of its weights from the gradient of the table.
#include <alibi/position/t5_bias.hpp>

#include "common.hpp"

namespace {

using test::Index;
using test::RowMatrix;

// Each entry is the weight of its distance's bucket. The gradient of each weight is the sum over its entries.
TEST(BackwardT5, TablesAndTheirGradients) {
  test::Random random(34);
  for (const alibi::T5Buckets config : {alibi::T5Buckets{}, {.bidirectional = true}, {8, 20, false}, {8, 20, true}}) {
    const RowMatrix<double> weights = random.matrix<double>(3, config.buckets);
    const RowMatrix<double> table = alibi::t5_table(weights, config);
    const Index first = alibi::t5_first_distance(config);
    EXPECT_EQ(first, config.bidirectional ? -config.max_distance : 0);
    ASSERT_EQ(table.rows(), 3);
    const auto bucket = [&](Index distance) { return alibi::t5_bucket(-distance, config); };
    const auto at = [&](Index distance) { return std::clamp<Index>(distance - first, 0, table.cols() - 1); };
    for (Index h = 0; h < 3; h++)
      for (Index distance = config.bidirectional ? -500 : 0; distance <= 500; distance++)
        ASSERT_EQ(table(h, at(distance)), weights(h, bucket(distance))) << "distance " << distance;

    const RowMatrix<double> grad_table = random.matrix<double>(3, table.cols());
    RowMatrix<double> expected = RowMatrix<double>::Zero(3, config.buckets);
    for (Index h = 0; h < 3; h++)
      for (Index t = 0; t < table.cols(); t++) expected(h, bucket(first + t)) += grad_table(h, t);
    EXPECT_LE(test::distance(alibi::t5_weights_gradient(grad_table, config), expected), 1e-13);
  }
}

}  // namespace
