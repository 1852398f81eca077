/* What is between org.gridcpr.Checkpoint and libgridcpr: each function hands its arguments on. Strings of Java come in
 * its own kind of UTF-8, which differs from others only for zeros and for characters beyond the first plane. */
#include <gridcpr.h>
#include <jni.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTION(type, name) JNIEXPORT type JNICALL Java_org_gridcpr_Checkpoint_##name
#define APP(number) ((gridcpr_app *)(intptr_t)(number))

/* Null stays null; so it is when memory is exhausted, and Java has thrown. */
static const char *text(JNIEnv *env, jstring string) {
    return string ? (*env)->GetStringUTFChars(env, string, NULL) : NULL;
}

static void done(JNIEnv *env, jstring string, const char *chars) {
    if (chars) (*env)->ReleaseStringUTFChars(env, string, chars);
}

JNIEXPORT jstring JNICALL Java_org_gridcpr_Library_error(JNIEnv *env, jclass class) {
    (void)class;
    return (*env)->NewStringUTF(env, gridcpr_error());
}

JNIEXPORT jint JNICALL Java_org_gridcpr_Library_errorCode(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    return gridcpr_error_code();
}

FUNCTION(jlong, open)
(JNIEnv *env, jclass class, jstring base, jstring name, jint rank, jint ranks, jint keep, jlong lifetime,
 jstring sequence, jstring session) {
    (void)class;
    const char *base_ = text(env, base), *name_ = text(env, name);
    const char *sequence_ = text(env, sequence), *session_ = text(env, session);
    gridcpr_app_options options = {
        .size = sizeof options,
        .rank = (uint32_t)rank,
        .ranks = (uint32_t)ranks,
        .keep = (uint32_t)keep,
        .lifetime = (uint64_t)lifetime,
        .sequence = sequence_,
        .session = session_,
    };
    gridcpr_app *app = gridcpr_app_open(base_, name_, &options);
    done(env, base, base_), done(env, name, name_), done(env, sequence, sequence_), done(env, session, session_);
    return (jlong)(intptr_t)app;
}

FUNCTION(jint, close)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_close(APP(app));
}

FUNCTION(jint, protect)
(JNIEnv *env, jclass class, jlong app, jstring name, jobject buffer, jint type, jlongArray shape, jlongArray strides,
 jint order) {
    (void)class;
    jsize dimensions = (*env)->GetArrayLength(env, shape);
    jlong *extents = (*env)->GetLongArrayElements(env, shape, NULL);
    jlong *steps = strides ? (*env)->GetLongArrayElements(env, strides, NULL) : NULL;
    const char *name_ = text(env, name);
    int result = GRIDCPR_E_NO_SPACE;
    if (extents && (steps || !strides))
        result = gridcpr_app_protect_strided(APP(app), name_, (*env)->GetDirectBufferAddress(env, buffer), type,
                                             (unsigned)dimensions, (const uint64_t *)extents, (const uint64_t *)steps,
                                             order);
    done(env, name, name_);
    if (steps) (*env)->ReleaseLongArrayElements(env, strides, steps, JNI_ABORT);
    if (extents) (*env)->ReleaseLongArrayElements(env, shape, extents, JNI_ABORT);
    return result;
}

FUNCTION(jint, unprotect)(JNIEnv *env, jclass class, jlong app, jstring name) {
    (void)class;
    const char *name_ = text(env, name);
    int result = gridcpr_app_unprotect(APP(app), name_);
    done(env, name, name_);
    return result;
}

FUNCTION(jint, setAttribute)(JNIEnv *env, jclass class, jlong app, jstring key, jstring value) {
    (void)class;
    const char *key_ = text(env, key), *value_ = text(env, value);
    int result = gridcpr_app_set_attribute(APP(app), key_, value_);
    done(env, key, key_), done(env, value, value_);
    return result;
}

FUNCTION(jlong, write)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_write(APP(app));
}

FUNCTION(jint, prepare)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_prepare(APP(app));
}

FUNCTION(jint, writeBegin)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_write_begin(APP(app));
}

FUNCTION(jlong, await)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_wait(APP(app));
}

FUNCTION(jlong, restore)(JNIEnv *env, jclass class, jlong app, jlong generation) {
    (void)env, (void)class;
    return gridcpr_app_restore(APP(app), (uint64_t)generation);
}

FUNCTION(jlongArray, progress)(JNIEnv *env, jclass class, jlong app) {
    (void)class;
    uint64_t done_, total;
    if (gridcpr_app_progress(APP(app), &done_, &total) < 0) return NULL;
    const jlong both[] = {(jlong)done_, (jlong)total};
    jlongArray numbers = (*env)->NewLongArray(env, 2);
    if (numbers) (*env)->SetLongArrayRegion(env, numbers, 0, 2, both);
    return numbers;
}

/* All, or those that remember `value` under `key`. */
FUNCTION(jlongArray, generations)(JNIEnv *env, jclass class, jlong app, jstring key, jstring value) {
    (void)class;
    enum { FIELDS = 8 };
    const char *key_ = text(env, key), *value_ = text(env, value);
    gridcpr_app_generation *found = NULL;
    int count = 0, room;
    do {
        room = count;
        gridcpr_app_generation *more = realloc(found, (size_t)(room + 1) * sizeof *found);
        if (!more) {
            count = -1;
            break;
        }
        found = more;
        count = key ? gridcpr_app_find(APP(app), key_, value_, found, (size_t)room)
                    : gridcpr_app_query(APP(app), found, (size_t)room);
    } while (count > room);
    done(env, key, key_), done(env, value, value_);
    jlongArray all = count < 0 ? NULL : (*env)->NewLongArray(env, count * FIELDS);
    for (int i = 0; all && i < count; i++) {
        const gridcpr_app_generation *one = &found[i];
        const jlong fields[FIELDS] = {(jlong)one->generation, (jlong)one->time_ns, (jlong)one->bytes,
                                      (jlong)one->lifetime,   one->state,          one->parts,
                                      one->ranks,             one->needs};
        (*env)->SetLongArrayRegion(env, all, i * FIELDS, FIELDS, fields);
    }
    free(found);
    return all;
}

FUNCTION(jstring, attribute)(JNIEnv *env, jclass class, jlong app, jlong generation, jstring key) {
    (void)class;
    const char *key_ = text(env, key);
    jstring value = NULL;
    int length = gridcpr_app_get_attribute(APP(app), (uint64_t)generation, key_, NULL, 0);
    char *chars = length < 0 ? NULL : malloc((size_t)length + 1);
    if (chars) {
        length = gridcpr_app_get_attribute(APP(app), (uint64_t)generation, key_, chars, (size_t)length + 1);
        if (length >= 0) value = (*env)->NewStringUTF(env, chars);
        free(chars);
    }
    done(env, key, key_);
    return value;
}

FUNCTION(jint, update)
(JNIEnv *env, jclass class, jlong app, jlong generation, jstring key, jstring value, jlong seconds) {
    (void)class;
    const char *key_ = text(env, key), *value_ = text(env, value);
    int result = gridcpr_app_update(APP(app), (uint64_t)generation, key_, value_, (uint64_t)seconds);
    done(env, key, key_), done(env, value, value_);
    return result;
}

FUNCTION(jint, read)
(JNIEnv *env, jclass class, jlong app, jlong generation, jint rank, jstring name, jlong offset, jbyteArray bytes) {
    (void)class;
    const char *name_ = text(env, name);
    jsize length = (*env)->GetArrayLength(env, bytes);
    jbyte *place = (*env)->GetByteArrayElements(env, bytes, NULL);
    int result = GRIDCPR_E_NO_SPACE;
    if (place) {
        result = gridcpr_app_read(APP(app), (uint64_t)generation, (uint32_t)rank, name_, (uint64_t)offset, place,
                                  (size_t)length);
        (*env)->ReleaseByteArrayElements(env, bytes, place, 0);
    }
    done(env, name, name_);
    return result;
}

enum { PATH = 1 << 16 };

FUNCTION(jstring, route)(JNIEnv *env, jclass class, jlong app, jstring name) {
    (void)class;
    const char *name_ = text(env, name);
    char *path = malloc(PATH);
    jstring found = NULL;
    if (path && gridcpr_app_route(APP(app), name_, path, PATH) >= 0) found = (*env)->NewStringUTF(env, path);
    free(path);
    done(env, name, name_);
    return found;
}

FUNCTION(jstring, file)(JNIEnv *env, jclass class, jlong app, jlong generation, jstring name) {
    (void)class;
    const char *name_ = text(env, name);
    char *path = malloc(PATH);
    jstring found = NULL;
    if (path && gridcpr_app_file(APP(app), (uint64_t)generation, name_, path, PATH) >= 0)
        found = (*env)->NewStringUTF(env, path);
    free(path);
    done(env, name, name_);
    return found;
}

FUNCTION(jint, forget)(JNIEnv *env, jclass class, jlong app) {
    (void)env, (void)class;
    return gridcpr_app_forget(APP(app));
}

FUNCTION(jint, free)(JNIEnv *env, jclass class, jlong app, jlong generation) {
    (void)env, (void)class;
    return gridcpr_app_free(APP(app), (uint64_t)generation);
}

FUNCTION(jint, validate)(JNIEnv *env, jclass class, jlong app, jlong generation) {
    (void)env, (void)class;
    return gridcpr_app_validate(APP(app), (uint64_t)generation);
}

FUNCTION(jint, transfer)(JNIEnv *env, jclass class, jlong app, jlong generation, jstring base) {
    (void)class;
    const char *base_ = text(env, base);
    int result = gridcpr_app_transfer(APP(app), (uint64_t)generation, base_);
    done(env, base, base_);
    return result;
}
