// The cases of suite.c in C++.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <gridcpr.hpp>
#include <iostream>
#include <thread>

namespace {

using gridcpr::checkpoint;
using gridcpr::options;

struct state {
    std::int64_t step = 0;
    std::vector<double> field = std::vector<double>(1000);
    std::array<double, 12> grid{}; // 3 by 4 in Fortran order
    std::array<float, 13> spread{};
    std::array<std::int32_t, 7> counts{};

    explicit state(int seed) : step(seed) {
        for (std::size_t i = 0; i < field.size(); i++) field[i] = seed + static_cast<double>(i) * 0.5;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 4; j++) grid[static_cast<std::size_t>(j * 3 + i)] = seed + 10 * i + j;
        for (std::size_t k = 0; k < spread.size(); k++)
            spread[k] = k % 3 != 0 ? -1 : static_cast<float>(seed) + static_cast<float>(k / 3);
        for (std::size_t i = 0; i < counts.size(); i++) counts[i] = seed * static_cast<int>(i);
    }
    void protect(checkpoint &app) {
        app.protect("step", step);
        app.protect("field", field);
        app.protect("grid", grid.data(), {3, 4}, GRIDCPR_FORTRAN_ORDER);
        app.protect_strided("spread", spread.data(), {5}, {3 * sizeof(float)});
        app.protect("counts", counts.data(), {7});
    }
    bool operator==(const state &other) const {
        return step == other.step && field == other.field && grid == other.grid && spread == other.spread &&
               counts == other.counts;
    }
};

void write_one(const std::string &base, int seed) {
    checkpoint app(base, "suite");
    state now(seed);
    now.protect(app);
    app.set_attribute("writer", "cpp");
    std::cout << app.write() << "\n";
}

void read_one(const std::string &base, int seed) {
    checkpoint app(base, "suite");
    state found(-1);
    found.spread.fill(-1);
    found.protect(app);
    const auto generation = static_cast<std::uint64_t>(app.restore());
    if (!(found == state(seed))) throw std::runtime_error("what was read differs");
    std::cout << generation << " " << app.attribute(generation, "writer") << "\n";
}

void list(const char *what, checkpoint &app) {
    std::cout << what << ":";
    for (const auto &found : app.generations())
        std::cout << " " << found.generation << "/" << found.state << "/" << found.needs;
    std::cout << "\n";
}

int code(const std::function<void()> &work) {
    try {
        work();
    } catch (const gridcpr::error &error) {
        return error.code();
    }
    return 0;
}

void cases(const std::string &base) {
    std::int64_t step = 0;
    {
        options how;
        how.sequence = "FIi";
        checkpoint app(base, "increments", how);
        std::vector<std::uint8_t> big(3 << 20);
        app.protect("big", big);
        for (std::size_t i = 0; i < 3; i++) {
            big[i << 20] = static_cast<std::uint8_t>(i + 1);
            app.write();
        }
        list("increments", app);
        std::fill(big.begin(), big.end(), std::uint8_t{0});
        app.restore();
        std::cout << "restored: " << +big[0] << " " << +big[1 << 20] << " " << +big[2 << 20] << "\n";
        std::cout << "needed: " << code([&] { app.free(1); }) << "\n";
    }
    {
        options how;
        how.keep = 2;
        checkpoint app(base, "keep", how);
        app.protect("step", step);
        for (step = 1; step <= 4; step++) app.write();
        list("kept", app);
        how = {};
        how.lifetime = 1;
        checkpoint brief(base, "expire", how);
        brief.protect("step", step);
        brief.write();
        std::this_thread::sleep_for(std::chrono::milliseconds(1200));
        brief.write();
        list("lives", brief);
    }
    {
        checkpoint app(base, "metadata");
        app.protect("step", step);
        for (step = 1; step <= 3; step++) {
            app.set_attribute("phase", step == 2 ? "spin-up" : "run");
            app.write();
        }
        const auto found = app.find("phase", "run");
        std::cout << "found: " << found.size() << ", the last " << found.back().generation << "\n";
        app.update(3, "phase", "done", 60);
        std::cout << "updated: " << app.attribute(3, "phase") << " " << app.generations()[2].lifetime << "\n";
        std::int64_t piece = 0;
        app.read(2, 0, "step", 0, &piece, 1);
        std::cout << "read: " << piece << "\n";
        app.validate(2);
        app.free(2);
        list("freed", app);
        app.transfer(3, base + "/there");
        app.forget();
        list("forgotten", app);
        checkpoint there(base + "/there", "metadata");
        there.protect("step", step);
        step = 0;
        there.restore();
        std::cout << "transferred: " << step << "\n";
    }
    {
        options how;
        how.ranks = 2;
        how.session = "a";
        checkpoint one(base, "ranks", how);
        how.rank = 1;
        checkpoint two(base, "ranks", how);
        one.protect("step", step);
        two.protect("step", step);
        step = 10;
        one.write();
        list("half", one);
        step = 11;
        two.write();
        list("whole", one);
        one.restore();
        std::cout << "rank 0: " << step << "\n";
        two.restore();
        std::cout << "rank 1: " << step << "\n";
    }
    {
        checkpoint app(base, "background");
        app.protect("step", step);
        app.prepare();
        step = 7;
        app.write_begin();
        step = 8;
        const auto generation = app.wait();
        const auto [done, total] = app.progress();
        app.restore();
        std::cout << "background: " << generation << " 0 " << done << " of " << total << ", " << step << "\n";
    }
    {
        checkpoint app(base, "files");
        app.protect("step", step);
        std::ofstream(app.route("notes.txt")) << "of its own";
        const auto generation = app.write();
        std::string text;
        std::getline(std::ifstream(app.file(static_cast<std::uint64_t>(generation), "notes.txt")), text);
        std::cout << "file: " << text << "\n";
    }
    {
        checkpoint app(base, "wrong");
        app.protect("step", step);
        std::cout << "none: " << app.restore() << "\n";
        app.write();
        std::int32_t narrow = 0;
        app.protect("step", narrow);
        std::cout << "another type: " << code([&] { app.restore(); }) << "\n";
        std::cout << "no such generation: " << code([&] { app.validate(9); }) << "\n";
        std::cout << "open twice: " << code([&] { checkpoint again(base, "wrong"); }) << "\n";
    }
}

void job() {
    static const char *const names[] = {"?", "before", "continue", "restart", "told"};
    std::atomic<bool> told{false};
    const gridcpr::callback callback([&](const gridcpr_notice &notice) {
        const std::string reason(notice.reason);
        std::cout << names[notice.event] << (reason.empty() ? "" : ": ") << reason << std::endl;
        if (notice.event == GRIDCPR_TOLD) told = true;
        return GRIDCPR_READY;
    });
    {
        const gridcpr::critical_section outer;
        const gridcpr::critical_section inner;
    }
    gridcpr::file_policy("*.txt", "nocheck,nottruncate");
    const bool again = gridcpr::checkpoint_job();
    {
        const gridcpr::critical_section after_callbacks;
        const auto restart = gridcpr::last_restart();
        if (again != restart.has_value()) throw std::runtime_error("it does not know whether it was restarted");
        if (again) {
            std::cout << "restarted " << restart->times << " " << restart->generation << " " << restart->image << " "
                      << restart->job << std::endl;
        } else {
            std::cout << "continued " << gridcpr::restarted() << " 0" << std::endl;
        }
    }
    while (!told) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::cout << "end\n";
}

} // namespace

int main(int argc, char **argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    try {
        if (words.size() == 3 && words[0] == "write") write_one(words[1], std::stoi(words[2]));
        else if (words.size() == 3 && words[0] == "read") read_one(words[1], std::stoi(words[2]));
        else if (words.size() == 2 && words[0] == "cases") cases(words[1]);
        else if (words.size() == 1 && words[0] == "job") job();
        else return 64;
    } catch (const std::exception &error) {
        std::cerr << "suite: " << error.what() << "\n";
        return 1;
    }
    return 0;
}
