// Which of the instruction sets this machine and its operating system have.

#pragma once

#include "kernels.h"

namespace bitbudget {

bool processor_has(Isa isa);

}  // namespace bitbudget
