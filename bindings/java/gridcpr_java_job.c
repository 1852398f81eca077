/* What is between org.gridcpr.Job and libgridcpr. Callbacks come in threads of the library, which are made known to Java
 * for as long as they last. */
#include <gridcpr.h>
#include <jni.h>
#include <stdlib.h>

#define FUNCTION(type, name) JNIEXPORT type JNICALL Java_org_gridcpr_Job_##name

static JavaVM *machine;

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *loaded, void *reserved) {
    (void)reserved;
    machine = loaded;
    return JNI_VERSION_10;
}

/* Never freed: the library may still be about to call what was unregistered. */
struct registered {
    jobject callback;
    jclass job;
    jmethodID run;
};

static int call(const gridcpr_notice *notice, void *data) {
    const struct registered *registered = data;
    JNIEnv *env;
    if ((*machine)->AttachCurrentThreadAsDaemon(machine, (void **)&env, NULL) != JNI_OK) {
        gridcpr_explain("the Java machine has no room for the thread of a callback");
        return GRIDCPR_LATER;
    }
    int verdict = GRIDCPR_REFUSE;
    jstring reason = (*env)->NewStringUTF(env, notice->reason);
    if (reason)
        verdict = (*env)->CallStaticIntMethod(env, registered->job, registered->run, registered->callback,
                                              (jint)notice->event, (jboolean)(notice->failed != 0),
                                              (jint)notice->restarts, (jlong)notice->checkpoint, reason);
    if ((*env)->ExceptionCheck(env)) {
        (*env)->ExceptionClear(env);
        gridcpr_explain("an exception in a callback");
        verdict = GRIDCPR_REFUSE;
    }
    (*machine)->DetachCurrentThread(machine);
    return verdict;
}

FUNCTION(jint, block)(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    return gridcpr_block();
}

FUNCTION(jint, unblock)(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    return gridcpr_unblock();
}

FUNCTION(jint, registerNative)(JNIEnv *env, jclass class, jobject callback) {
    struct registered *registered = malloc(sizeof *registered);
    if (!registered) return GRIDCPR_E_NO_SPACE;
    registered->callback = (*env)->NewGlobalRef(env, callback);
    registered->job = (*env)->NewGlobalRef(env, class);
    registered->run =
        (*env)->GetStaticMethodID(env, class, "run", "(Lorg/gridcpr/Callback;IZIJLjava/lang/String;)I");
    int number = GRIDCPR_E_NO_SPACE;
    if (registered->callback && registered->job && registered->run)
        number = gridcpr_register(call, registered, GRIDCPR_THREAD);
    if (number < 0) {
        if (registered->callback) (*env)->DeleteGlobalRef(env, registered->callback);
        if (registered->job) (*env)->DeleteGlobalRef(env, registered->job);
        free(registered);
    }
    return number;
}

FUNCTION(jint, unregister)(JNIEnv *env, jclass class, jint number) {
    (void)env, (void)class;
    return gridcpr_unregister(number);
}

FUNCTION(void, explain)(JNIEnv *env, jclass class, jstring reason) {
    (void)class;
    const char *chars = (*env)->GetStringUTFChars(env, reason, NULL);
    if (chars) {
        gridcpr_explain(chars);
        (*env)->ReleaseStringUTFChars(env, reason, chars);
    }
}

FUNCTION(jint, checkpointNative)(JNIEnv *env, jclass class, jboolean stop) {
    (void)env, (void)class;
    return gridcpr_checkpoint(stop ? GRIDCPR_STOP : 0, NULL, 0);
}

FUNCTION(jint, restartedNative)(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    gridcpr_restart restart = {.size = sizeof restart};
    int result = gridcpr_restarted(&restart);
    return result < 0 ? result : (jint)restart.times;
}

FUNCTION(jint, filePolicyNative)(JNIEnv *env, jclass class, jstring pattern, jstring policy) {
    (void)class;
    const char *files = pattern ? (*env)->GetStringUTFChars(env, pattern, NULL) : NULL;
    const char *treated = policy ? (*env)->GetStringUTFChars(env, policy, NULL) : NULL;
    jint result = gridcpr_file_policy(files, treated);
    if (files) (*env)->ReleaseStringUTFChars(env, pattern, files);
    if (treated) (*env)->ReleaseStringUTFChars(env, policy, treated);
    return result;
}

FUNCTION(jlong, generationNative)(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    return gridcpr_generation();
}

FUNCTION(jstring, restartText)(JNIEnv *env, jclass class, jboolean image) {
    (void)class;
    gridcpr_restart restart = {.size = sizeof restart};
    if (gridcpr_restarted(&restart) < 0) return NULL;
    return (*env)->NewStringUTF(env, image ? restart.image : restart.job);
}

FUNCTION(jstring, commandNative)(JNIEnv *env, jclass class, jobjectArray arguments) {
    (void)class;
    enum { ROOM = 1 << 20 };
    jsize count = (*env)->GetArrayLength(env, arguments);
    const char **words = calloc((size_t)count + 1, sizeof *words);
    char *result = calloc(ROOM, 1);
    int whole = words && result;
    for (jsize i = 0; whole && i < count; i++) {
        jstring word = (*env)->GetObjectArrayElement(env, arguments, i);
        words[i] = word ? (*env)->GetStringUTFChars(env, word, NULL) : NULL;
        whole = words[i] != NULL;
    }
    jstring said = NULL;
    if (whole && gridcpr_command(words, result, ROOM) >= 0) said = (*env)->NewStringUTF(env, result);
    for (jsize i = 0; words && i < count && words[i]; i++)
        (*env)->ReleaseStringUTFChars(env, (*env)->GetObjectArrayElement(env, arguments, i), words[i]);
    free(words);
    free(result);
    return said;
}
