// Declarations for the CUDA headers of PyTorch. See README.md.
#pragma once

typedef enum {} cusolverStatus_t;
