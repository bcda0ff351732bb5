// What a library shows to those who load it: these functions, and nothing else.

#pragma once

#ifdef _WIN32
#define KITHKIN_API extern "C" __declspec(dllexport)
#else
#define KITHKIN_API extern "C" __attribute__((visibility("default")))
#endif
