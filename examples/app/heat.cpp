// Heat in a rod. Writes its state every thousand steps, and goes on from the newest one when it is started again.
//
//   g++ -std=c++17 -O2 -o heat heat.cpp $(pkg-config --cflags --libs gridcpr) && ./heat /scratch 20000
#include <cstdio>
#include <cstdlib>
#include <gridcpr.hpp>

int main(int argc, char **argv) try {
    const std::string base = argc > 1 ? argv[1] : "";
    const std::int64_t last = argc > 2 ? std::atoll(argv[2]) : 20000;
    std::vector<double> rod(2000), next(2000);
    rod[0] = 100;
    std::int64_t step = 0;

    gridcpr::options how;
    how.keep = 2;
    gridcpr::checkpoint state(base, "heat-cpp", how);
    state.protect("temperature", rod);
    state.protect("step", step);
    if (state.restore()) std::fprintf(stderr, "heat: going on at step %lld\n", static_cast<long long>(step));
    while (step < last) {
        for (std::size_t i = 1; i + 1 < rod.size(); i++)
            next[i] = rod[i] + 0.3 * (rod[i - 1] - 2 * rod[i] + rod[i + 1]);
        for (std::size_t i = 1; i + 1 < rod.size(); i++) rod[i] = next[i];
        if (++step % 1000 == 0) state.write();
    }
    double sum = 0;
    for (std::size_t i = 0; i < rod.size(); i++) sum += rod[i] * static_cast<double>(i);
    std::printf("%lld steps, %.17g\n", static_cast<long long>(step), sum);
} catch (const std::exception &error) {
    std::fprintf(stderr, "heat: %s\n", error.what());
    return 1;
}
