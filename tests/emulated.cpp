// Runs a kernel in an emulator, for test_native_emulated.py: `emulated KERNEL FILE`. The file holds the kernel's arguments,
// each in two words: 0 and its value, or -1 and how many bytes follow, to which it points. Those come back in their place.

#include <cstdint>
#include <cstdio>
#include <map>
#include <new>
#include <string>
#include <vector>

#define KERNELS(each) \
    each(kithkin_forward) each(kithkin_backward) \
    each(kithkin_feed_forward) each(kithkin_feed_forward_backward) each(kithkin_gated_block) each(kithkin_gated_block_backward)
#define DECLARE(name) extern "C" int name(const void*);
#define LIST(name) {#name, name},
KERNELS(DECLARE)

int main(int, char** arguments) {
    const std::map<std::string, int (*)(const void*)> kernels = {KERNELS(LIST)};
    std::FILE* file = std::fopen(arguments[2], "r+b");
    struct Buffer {
        char* start;
        int64_t size;
        long place;
    };
    std::vector<int64_t> words;
    std::vector<Buffer> buffers;
    for (int64_t kind, word; std::fread(&kind, 8, 1, file) && std::fread(&word, 8, 1, file); words.push_back(word)) {
        if (kind != -1) continue;
        Buffer buffer{static_cast<char*>(::operator new(word, std::align_val_t(64))), word, std::ftell(file)};
        if (std::fread(buffer.start, 1, word, file) != static_cast<size_t>(word)) return 2;
        word = reinterpret_cast<int64_t>(buffer.start);
        buffers.push_back(buffer);
    }
    const int failed = kernels.at(arguments[1])(words.data());
    for (const Buffer& buffer : buffers) {
        std::fseek(file, buffer.place, SEEK_SET);
        std::fwrite(buffer.start, 1, buffer.size, file);
    }
    return std::fclose(file) || failed;
}
