// Which of the instruction sets this machine and its operating system have.

#pragma once

#include "kernels.h"

namespace bitbudget {

bool processor_has(Isa isa);

// AMX with 8-bit integers, for which the operating system has to be asked.
bool processor_has_tiles();

// One stream of memory gets a core's whole bandwidth.
bool processor_reads_in_order();

}  // namespace bitbudget
