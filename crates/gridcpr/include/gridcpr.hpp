/** @file
 * libgridcpr for C++17: what gridcpr.h declares, with exceptions, and with objects that clean up after themselves.
 *
 *   std::vector<double> field(1000 * 1000);
 *   std::int64_t step = 0;
 *   gridcpr::checkpoint state("/scratch", "heat");
 *   state.protect("field", field.data(), {1000, 1000});
 *   state.protect("step", step);
 *   state.restore();
 *   ...
 *   state.write();
 */
#ifndef GRIDCPR_HPP
#define GRIDCPR_HPP

#include <complex>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gridcpr.h"

namespace gridcpr {

/** What the library says went wrong; code() is one of GRIDCPR_E_*. */
class error : public std::runtime_error {
public:
    /** From the number that a function gave, and the message of this thread. */
    explicit error(int code) : std::runtime_error(gridcpr_error()), code_(code) {}
    /** One of GRIDCPR_E_*. */
    int code() const noexcept { return code_; }

private:
    int code_;
};

namespace detail {

template <typename Number> Number checked(Number result) {
    if (result < 0) throw error(static_cast<int>(result));
    return result;
}

template <typename Element> constexpr int type_of() {
    static_assert(std::is_trivially_copyable_v<Element>, "only elements without pointers of their own can be saved");
    if constexpr (std::is_same_v<Element, float>) return GRIDCPR_FLOAT32;
    else if constexpr (std::is_same_v<Element, double>) return GRIDCPR_FLOAT64;
    else if constexpr (std::is_same_v<Element, std::complex<float>>) return GRIDCPR_COMPLEX64;
    else if constexpr (std::is_same_v<Element, std::complex<double>>) return GRIDCPR_COMPLEX128;
    else if constexpr (std::is_integral_v<Element>) {
        constexpr int first = std::is_signed_v<Element> ? GRIDCPR_INT8 : GRIDCPR_UINT8;
        return first + (sizeof(Element) == 1 ? 0 : sizeof(Element) == 2 ? 1 : sizeof(Element) == 4 ? 2 : 3);
    } else return GRIDCPR_BYTES;
}

} // namespace detail

/** As long as it lives, no checkpoint of the whole program is taken. Belongs to the thread that made it. */
class critical_section {
public:
    critical_section() { detail::checked(gridcpr_block()); }
    ~critical_section() { gridcpr_unblock(); }
    critical_section(const critical_section &) = delete;
    critical_section &operator=(const critical_section &) = delete;
};

/** A function called around checkpoints of the whole program, in a thread of the library; it gives GRIDCPR_READY,
 * GRIDCPR_LATER or GRIDCPR_REFUSE. An exception in it refuses the checkpoint, with its text. Unregistered when this
 * object goes. */
class callback {
public:
    /** Registers it. */
    explicit callback(std::function<int(const gridcpr_notice &)> function)
        : function_(std::make_unique<std::function<int(const gridcpr_notice &)>>(std::move(function))),
          number_(detail::checked(gridcpr_register(&call, function_.get(), GRIDCPR_THREAD))) {}
    ~callback() { gridcpr_unregister(number_); }
    callback(const callback &) = delete;
    callback &operator=(const callback &) = delete;

private:
    static int call(const gridcpr_notice *notice, void *data) noexcept {
        try {
            return (*static_cast<std::function<int(const gridcpr_notice &)> *>(data))(*notice);
        } catch (const std::exception &thrown) {
            gridcpr_explain(thrown.what());
        } catch (...) {
            gridcpr_explain("an exception in a callback");
        }
        return GRIDCPR_REFUSE;
    }

    std::unique_ptr<std::function<int(const gridcpr_notice &)>> function_;
    int number_;
};

/** Checkpoints the job that the program runs in; true in a program restarted from the image. */
inline bool checkpoint_job(bool stop = false) {
    return detail::checked(gridcpr_checkpoint(stop ? GRIDCPR_STOP : 0, nullptr, 0)) == GRIDCPR_RESTARTED;
}

/** How often the program was restarted from an image. */
inline unsigned restarted() {
    gridcpr_restart found{};
    found.size = sizeof found;
    detail::checked(gridcpr_restarted(&found));
    return found.times;
}

/** How checkpoints of the job treat files whose paths fit a pattern, as cpr run --file PATTERN=POLICY does. */
inline void file_policy(const std::string &pattern, const std::string &policy) {
    detail::checked(gridcpr_file_policy(pattern.c_str(), policy.c_str()));
}

/** The newest restart of a program. */
struct restart {
    unsigned times = 0;            /**< How often it was restarted. */
    std::uint64_t generation = 0;  /**< Number of the checkpoint that it goes on from, as callbacks were told. */
    std::string image;             /**< Identifier of the image. */
    std::string job;               /**< Name of the job. */
};

/** What is known of the newest restart; nothing in a program that was not restarted. */
inline std::optional<restart> last_restart() {
    gridcpr_restart found{};
    found.size = sizeof found;
    if (detail::checked(gridcpr_restarted(&found)) == 0) return std::nullopt;
    const auto generation = static_cast<std::uint64_t>(detail::checked(gridcpr_generation()));
    return restart{found.times, generation, found.image, found.job};
}

/** Does what the command cpr does with these arguments; gives its result, JSON. */
inline std::string command(const std::vector<std::string> &arguments) {
    std::vector<const char *> words;
    for (const std::string &argument : arguments) words.push_back(argument.c_str());
    words.push_back(nullptr);
    std::string result(std::size_t{1} << 20, '\0');
    const auto length = static_cast<std::size_t>(
        detail::checked(gridcpr_command(words.data(), result.data(), result.size())));
    result.resize(length < result.size() ? length : result.size() - 1);
    return result;
}

/** How a checkpoint is opened; see gridcpr_app_options. */
struct options {
    std::uint32_t rank = 0;     /**< Which part is ours ... */
    std::uint32_t ranks = 1;    /**< ... of how many. */
    std::uint32_t keep = 0;     /**< How many complete generations are kept; 0: as the environment says, or all. */
    std::uint64_t lifetime = 0; /**< Seconds for which one is kept; 0: as the environment says, or for ever. */
    std::string sequence;       /**< F: full; I: what changed since the last F; i: since the last one. In turn. */
    std::string session;        /**< The same for all ranks of one run, another in the next. */
};

/** A checkpoint that the program writes itself. To be used by one thread at a time. */
class checkpoint {
public:
    /** Opens it, and makes its directory if need be. */
    checkpoint(const std::string &base, const std::string &name, const options &how = {}) {
        gridcpr_app_options plain{};
        plain.size = sizeof plain;
        plain.rank = how.rank;
        plain.ranks = how.ranks;
        plain.keep = how.keep;
        plain.lifetime = how.lifetime;
        plain.sequence = how.sequence.empty() ? nullptr : how.sequence.c_str();
        plain.session = how.session.empty() ? nullptr : how.session.c_str();
        app_.reset(gridcpr_app_open(base.c_str(), name.c_str(), &plain));
        if (!app_) throw error(gridcpr_error_code());
    }

    /** An array, of any number of dimensions. It has to stay where it is. */
    template <typename Element>
    void protect(const std::string &name, Element *data, std::initializer_list<std::uint64_t> shape,
                 int order = GRIDCPR_C_ORDER) {
        std::vector<std::uint64_t> extents(shape);
        if (detail::type_of<Element>() == GRIDCPR_BYTES) extents.push_back(sizeof(Element));
        detail::checked(gridcpr_app_protect(app_.get(), name.c_str(), data, detail::type_of<Element>(),
                                            static_cast<unsigned>(extents.size()), extents.data(), order));
    }
    /** Elements that do not lie one after the other: `strides` are bytes from one index to the next. */
    template <typename Element>
    void protect_strided(const std::string &name, Element *data, std::initializer_list<std::uint64_t> shape,
                         std::initializer_list<std::uint64_t> strides, int order = GRIDCPR_C_ORDER) {
        static_assert(detail::type_of<Element>() != GRIDCPR_BYTES, "elements of numbers only");
        if (shape.size() != strides.size()) throw std::invalid_argument("there has to be a stride for each dimension");
        detail::checked(gridcpr_app_protect_strided(app_.get(), name.c_str(), data, detail::type_of<Element>(),
                                                    static_cast<unsigned>(shape.size()), shape.begin(),
                                                    strides.begin(), order));
    }
    /** A vector. It must not grow or shrink as long as it is protected. */
    template <typename Element> void protect(const std::string &name, std::vector<Element> &data) {
        protect(name, data.data(), {data.size()});
    }
    /** A single value. */
    template <typename Element> void protect(const std::string &name, Element &value) { protect(name, &value, {}); }
    /** Forgets a variable. */
    void unprotect(const std::string &name) { detail::checked(gridcpr_app_unprotect(app_.get(), name.c_str())); }
    /** What generations written from now on remember. */
    void set_attribute(const std::string &key, const std::string &value) {
        detail::checked(gridcpr_app_set_attribute(app_.get(), key.c_str(), value.c_str()));
    }

    /** Writes all protected variables; gives the number of the generation. */
    std::int64_t write() { return detail::checked(gridcpr_app_write(app_.get())); }
    /** Gets the memory of copies of them beforehand, so that the first write_begin() is as short as the others. */
    void prepare() { detail::checked(gridcpr_app_prepare(app_.get())); }
    /** Copies them, and writes the copy while the program goes on. */
    void write_begin() { detail::checked(gridcpr_app_write_begin(app_.get())); }
    /** Bytes done and in all, of that or of the last write. */
    std::pair<std::uint64_t, std::uint64_t> progress() {
        std::pair<std::uint64_t, std::uint64_t> bytes;
        detail::checked(gridcpr_app_progress(app_.get(), &bytes.first, &bytes.second));
        return bytes;
    }
    /** Waits for the end of that; gives its number, or 0 where nothing was begun. */
    std::int64_t wait() { return detail::checked(gridcpr_app_wait(app_.get())); }
    /** Fills all protected variables, from the newest sound generation unless another is named; gives its number, or 0
     * where there is none yet. */
    std::int64_t restore(std::uint64_t generation = 0) {
        return detail::checked(gridcpr_app_restore(app_.get(), generation));
    }

    /** All generations, the oldest first. */
    std::vector<gridcpr_app_generation> generations() {
        return collect([&](gridcpr_app_generation *out, std::size_t count) {
            return gridcpr_app_query(app_.get(), out, count);
        });
    }
    /** Those that remember `value` under `key`. */
    std::vector<gridcpr_app_generation> find(const std::string &key, const std::string &value) {
        return collect([&](gridcpr_app_generation *out, std::size_t count) {
            return gridcpr_app_find(app_.get(), key.c_str(), value.c_str(), out, count);
        });
    }
    /** Elements of a variable of any rank, from the one with number `first` on. */
    template <typename Element>
    void read(std::uint64_t generation, std::uint32_t rank, const std::string &name, std::uint64_t first, Element *data,
              std::size_t count) {
        detail::checked(gridcpr_app_read(app_.get(), generation, rank, name.c_str(), first * sizeof(Element), data,
                                         count * sizeof(Element)));
    }
    /** What a generation remembers under `key`. */
    std::string attribute(std::uint64_t generation, const std::string &key) {
        const int length =
            detail::checked(gridcpr_app_get_attribute(app_.get(), generation, key.c_str(), nullptr, 0));
        std::string value(static_cast<std::size_t>(length) + 1, '\0');
        detail::checked(gridcpr_app_get_attribute(app_.get(), generation, key.c_str(), value.data(), value.size()));
        value.pop_back();
        return value;
    }
    /** Changes what it remembers, and how long it is kept (seconds) where that is not 0. */
    void update(std::uint64_t generation, const std::string &key, const std::string &value,
                std::uint64_t lifetime = 0) {
        detail::checked(gridcpr_app_update(app_.get(), generation, key.c_str(), value.c_str(), lifetime));
    }
    /** Removes a generation that no other one needs. */
    void free(std::uint64_t generation) { detail::checked(gridcpr_app_free(app_.get(), generation)); }
    /** Removes all generations, and what is known of them. */
    void forget() { detail::checked(gridcpr_app_forget(app_.get())); }
    /** Compares every hash of a generation. */
    void validate(std::uint64_t generation) { detail::checked(gridcpr_app_validate(app_.get(), generation)); }
    /** Where to write a file that is to belong to the next generation. */
    std::string route(const std::string &name) {
        return path([&](char *place, std::size_t size) {
            return gridcpr_app_route(app_.get(), name.c_str(), place, size);
        });
    }
    /** Where such a file of a generation is, for reading. */
    std::string file(std::uint64_t generation, const std::string &name) {
        return path([&](char *place, std::size_t size) {
            return gridcpr_app_file(app_.get(), generation, name.c_str(), place, size);
        });
    }
    /** Copies a complete generation below another base directory. */
    void transfer(std::uint64_t generation, const std::string &base) {
        detail::checked(gridcpr_app_transfer(app_.get(), generation, base.c_str()));
    }

private:
    template <typename Ask> static std::vector<gridcpr_app_generation> collect(Ask ask) {
        std::vector<gridcpr_app_generation> found(64);
        for (;;) {
            const auto count = static_cast<std::size_t>(detail::checked(ask(found.data(), found.size())));
            const bool all = count <= found.size();
            found.resize(count);
            if (all) return found;
        }
    }
    template <typename Ask> static std::string path(Ask ask) {
        std::string found(std::size_t{1} << 16, '\0');
        found.resize(static_cast<std::size_t>(detail::checked(ask(found.data(), found.size()))));
        return found;
    }

    struct closer {
        void operator()(gridcpr_app *app) const noexcept { gridcpr_app_close(app); }
    };
    std::unique_ptr<gridcpr_app, closer> app_;
};

} // namespace gridcpr

#endif
