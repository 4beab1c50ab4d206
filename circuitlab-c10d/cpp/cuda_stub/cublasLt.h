// Declarations for the CUDA headers of PyTorch. See README.md.
#pragma once

typedef struct cublasLtContext* cublasLtHandle_t;
