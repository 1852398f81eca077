/*
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
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gridcpr.h"

namespace gridcpr {

/* What the library says went wrong; code() is one of GRIDCPR_E_*. */
class error : public std::runtime_error {
public:
    explicit error(int code) : std::runtime_error(gridcpr_error()), code_(code) {}
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

/* As long as it lives, no checkpoint of the whole program is taken. Belongs to the thread that made it. */
class critical_section {
public:
    critical_section() { detail::checked(gridcpr_block()); }
    ~critical_section() { gridcpr_unblock(); }
    critical_section(const critical_section &) = delete;
    critical_section &operator=(const critical_section &) = delete;
};

/* A function called around checkpoints of the whole program, in a thread of the library; it gives GRIDCPR_READY,
 * GRIDCPR_LATER or GRIDCPR_REFUSE. An exception in it refuses the checkpoint, with its text. Unregistered when this
 * object goes. */
class callback {
public:
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

/* Checkpoints the job that the program runs in; true in a program restarted from the image. */
inline bool checkpoint_job(bool stop = false) {
    return detail::checked(gridcpr_checkpoint(stop ? GRIDCPR_STOP : 0, nullptr, 0)) == GRIDCPR_RESTARTED;
}

/* How a checkpoint is opened; see gridcpr_app_options. */
struct options {
    std::uint32_t rank = 0;
    std::uint32_t ranks = 1;
    std::uint32_t keep = 0;
    std::uint64_t lifetime = 0;
    std::string sequence;
    std::string session;
};

/* A checkpoint that the program writes itself. To be used by one thread at a time. */
class checkpoint {
public:
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

    /* An array, of any number of dimensions. It has to stay where it is. */
    template <typename Element>
    void protect(const std::string &name, Element *data, std::initializer_list<std::uint64_t> shape,
                 int order = GRIDCPR_C_ORDER) {
        std::vector<std::uint64_t> extents(shape);
        if (detail::type_of<Element>() == GRIDCPR_BYTES) extents.push_back(sizeof(Element));
        detail::checked(gridcpr_app_protect(app_.get(), name.c_str(), data, detail::type_of<Element>(),
                                            static_cast<unsigned>(extents.size()), extents.data(), order));
    }
    /* A vector. It must not grow or shrink as long as it is protected. */
    template <typename Element> void protect(const std::string &name, std::vector<Element> &data) {
        protect(name, data.data(), {data.size()});
    }
    /* A single value. */
    template <typename Element> void protect(const std::string &name, Element &value) { protect(name, &value, {}); }
    void unprotect(const std::string &name) { detail::checked(gridcpr_app_unprotect(app_.get(), name.c_str())); }
    void set_attribute(const std::string &key, const std::string &value) {
        detail::checked(gridcpr_app_set_attribute(app_.get(), key.c_str(), value.c_str()));
    }

    /* Writes all protected variables; gives the number of the generation. */
    std::int64_t write() { return detail::checked(gridcpr_app_write(app_.get())); }
    /* Copies them, and writes the copy while the program goes on. */
    void write_begin() { detail::checked(gridcpr_app_write_begin(app_.get())); }
    /* Waits for the end of that; gives its number. */
    std::int64_t wait() { return detail::checked(gridcpr_app_wait(app_.get())); }
    /* Fills all protected variables, from the newest sound generation unless another is named; gives its number, or 0
     * where there is none yet. */
    std::int64_t restore(std::uint64_t generation = 0) {
        return detail::checked(gridcpr_app_restore(app_.get(), generation));
    }

    std::vector<gridcpr_app_generation> generations() {
        std::vector<gridcpr_app_generation> found(64);
        for (;;) {
            const auto count = static_cast<std::size_t>(
                detail::checked(gridcpr_app_query(app_.get(), found.data(), found.size())));
            const bool all = count <= found.size();
            found.resize(count);
            if (all) return found;
        }
    }
    std::string attribute(std::uint64_t generation, const std::string &key) {
        const int length =
            detail::checked(gridcpr_app_get_attribute(app_.get(), generation, key.c_str(), nullptr, 0));
        std::string value(static_cast<std::size_t>(length) + 1, '\0');
        detail::checked(gridcpr_app_get_attribute(app_.get(), generation, key.c_str(), value.data(), value.size()));
        value.pop_back();
        return value;
    }
    void update(std::uint64_t generation, const std::string &key, const std::string &value) {
        detail::checked(gridcpr_app_update(app_.get(), generation, key.c_str(), value.c_str(), 0));
    }
    void free(std::uint64_t generation) { detail::checked(gridcpr_app_free(app_.get(), generation)); }
    void validate(std::uint64_t generation) { detail::checked(gridcpr_app_validate(app_.get(), generation)); }
    void transfer(std::uint64_t generation, const std::string &base) {
        detail::checked(gridcpr_app_transfer(app_.get(), generation, base.c_str()));
    }

private:
    struct closer {
        void operator()(gridcpr_app *app) const noexcept { gridcpr_app_close(app); }
    };
    std::unique_ptr<gridcpr_app, closer> app_;
};

} // namespace gridcpr

#endif
