// Declarations for the CUDA headers of PyTorch. See README.md.
#pragma once

typedef struct cusparseContext* cusparseHandle_t;
typedef enum {} cusparseStatus_t;
