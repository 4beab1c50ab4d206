// Declarations for the CUDA headers of PyTorch. See README.md.
#pragma once

#include "cusolver_common.h"

typedef struct cusolverDnContext* cusolverDnHandle_t;
