// expect: for views there is no array type
#include "alibi/alibi.hpp"

using View = alibi::View<const float>;

void views_return_nothing(const View& q, const View& k, const View& v, const Eigen::VectorXf& slopes) {
  alibi::attention(q, k, v, slopes);
}
